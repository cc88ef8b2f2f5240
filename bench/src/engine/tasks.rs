//! The paper's tasks as trees that a model is timed on.

use anyhow::{Context, Result};
use deft::NodeKey;
use deft::abi::PAGE_TOKENS;
use deft_engine::cuda::{CudaModel, instrument};
use deft_engine::{DraftToken, TreeModel};
use deft_workloads::{MedusaRun, ReasoningRun};

use deft_tests::recorded;

use super::searches::{SEARCHES, Search};
use crate::random::Random;

const MEDUSA: &str = include_str!("../../../workloads/medusa.json");
/// Tokens that each few-shot continuation has already.
const GENERATED: u32 = 200;
/// Moments of a recorded run that are timed, evenly spread.
const MOMENTS: usize = 4;
/// Pages that a leaf may grow into while it is timed.
const GROWTH_PAGES: u32 = 2;
/// Draft trees of a task, each with its nodes in another order.
const DRAFTS: usize = 32;
/// Contexts at which a draft is held against one token, and the models that are.
const CONTEXTS: [u32; 5] = [1024, 4096, 8192, 16_384, 32_768];
const COMPARED: [&str; 4] = ["llama3-8b", "qwen3-8b", "smollm2-135m", "llama3-70b"];
/// Prompts that are run whole.
const PROMPTS: [u32; 3] = [2048, 8192, 32_768];

/// A tree at some moment, parents first. Node 0 is the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    parents: Vec<Option<usize>>,
    tokens: Vec<u32>,
    /// Nodes that grow.
    leaves: Vec<usize>,
}

/// Draft trees, and how much of each was accepted: another tree a step.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) steps: Vec<DraftStep>,
}

#[derive(Clone, Debug)]
pub(super) struct DraftStep {
    pub(super) tokens: Vec<DraftToken>,
    /// Nodes of the path that is accepted.
    pub(super) accepted: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Steps of all leaves, timed at each moment.
    Steps(Vec<Moment>),
    /// Drafts below a prompt.
    Drafts(Draft),
    /// A search below a prompt, beside steps of as many leaves.
    Search(Search, Moment),
    /// The prompt itself.
    Prompt,
}

#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) prompt_tokens: u32,
    pub(super) work: Work,
}

/// The paper's tasks at each of its prompt lengths, then one token and drafts at each context, searches and prompts; a
/// few of them if `quick`.
pub(super) fn all(quick: bool) -> Result<Vec<Task>> {
    let (prompts, widths, sizes): (&[u32], &[usize], &[u32]) = match quick {
        true => (&[1000, 20_000], &[50], &[64]),
        false => (&[1000, 5000, 10_000, 20_000], &[20, 30, 50], &[32, 64, 128, 256]),
    };
    let medusa = MedusaRun::parse(MEDUSA)?;
    let mut tasks = Vec::new();
    for &prompt_tokens in prompts {
        for &width in widths {
            tasks.push(few_shot(prompt_tokens, width));
        }
        for (name, recorded) in [("sorting", "sorting128ToT"), ("document", "docmergeToT")] {
            tasks.push(thoughts(name, recorded, prompt_tokens)?);
        }
        let runs = medusa.iter().filter(|run| sizes.contains(&run.size()));
        tasks.extend(runs.map(|run| speculative(run, prompt_tokens)));
    }
    if quick {
        return Ok(tasks);
    }
    for prompt_tokens in CONTEXTS {
        tasks.push(one_token(prompt_tokens));
        let runs = medusa.iter().filter(|run| [64, 128, 256].contains(&run.size()));
        tasks.extend(runs.map(|run| speculative(run, prompt_tokens)));
    }
    tasks.extend(SEARCHES.map(searched));
    tasks.extend(PROMPTS.map(|prompt_tokens| Task {
        name: "prompt".to_owned(),
        prompt_tokens,
        work: Work::Prompt,
    }));
    Ok(tasks)
}

/// A single leaf.
fn one_token(prompt_tokens: u32) -> Task {
    let moment = Moment { parents: vec![None], tokens: vec![prompt_tokens], leaves: vec![0] };
    Task { name: "one-token".to_owned(), prompt_tokens, work: Work::Steps(vec![moment]) }
}

fn searched(search: Search) -> Task {
    let prompt_tokens = CONTEXTS[0];
    let Work::Steps(mut moments) = few_shot(prompt_tokens, search.width()).work else {
        unreachable!("few-shot tasks are steps");
    };
    let work = Work::Search(search, moments.swap_remove(0));
    Task { name: search.name(), prompt_tokens, work }
}

fn few_shot(prompt_tokens: u32, width: usize) -> Task {
    let moment = Moment {
        parents: std::iter::once(None).chain(vec![Some(0); width]).collect(),
        tokens: std::iter::once(prompt_tokens).chain(vec![GENERATED; width]).collect(),
        leaves: (1..=width).collect(),
    };
    Task { name: format!("few-shot-{width}"), prompt_tokens, work: Work::Steps(vec![moment]) }
}

/// The first recorded run of a task, below a prompt of another length.
fn thoughts(name: &str, recorded: &str, prompt_tokens: u32) -> Result<Task> {
    let of_task = recorded::TASKS.iter().find(|(task, _)| *task == recorded);
    let (_, text) = of_task.with_context(|| format!("no task {recorded}"))?;
    let run = ReasoningRun::parse(text)?.swap_remove(0);
    Ok(Task {
        name: name.to_owned(),
        prompt_tokens,
        work: Work::Steps(moments(&run, prompt_tokens)?),
    })
}

fn moments(run: &ReasoningRun, prompt_tokens: u32) -> Result<Vec<Moment>> {
    let last = u64::from(run.steps());
    // The middles of as many equal parts of the run; where nothing grows then, the next step at which something does.
    let due = (0..MOMENTS as u64).map(|part| (2 * part + 1) * last / (2 * MOMENTS as u64));
    let due: Vec<u32> = due.map(|step| step as u32).collect();
    let mut moments = Vec::new();
    let mut replay = run.replay()?;
    while let Some(change) = replay.advance()? {
        let next = due.get(moments.len());
        if next.is_none_or(|&due| change.step < due) || replay.growing().is_empty() {
            continue;
        }
        let mut moment = Moment { parents: Vec::new(), tokens: Vec::new(), leaves: Vec::new() };
        let mut places = vec![None; run.parents().len()];
        for (node, parent) in run.parents().iter().enumerate() {
            let Some(key) = replay.key(node as u32) else {
                continue;
            };
            places[node] = Some(moment.parents.len());
            moment.parents.push(parent.and_then(|parent| places[parent as usize]));
            moment.tokens.push(match node {
                0 => prompt_tokens,
                _ => replay.forest().length(key)?,
            });
        }
        let leaves = replay.growing().iter();
        moment.leaves = leaves.filter_map(|&leaf| places[leaf as usize]).collect();
        moments.push(moment);
    }
    Ok(moments)
}

fn speculative(run: &MedusaRun, prompt_tokens: u32) -> Task {
    let mut random = Random::new(1);
    let lengths = run.accepted().iter().flatten().cycle();
    let step = |&length: &u32| DraftStep::shuffled(run, length, &mut random);
    Task {
        name: format!("speculative-{}", run.size()),
        prompt_tokens,
        work: Work::Drafts(Draft { steps: lengths.take(DRAFTS).map(step).collect() }),
    }
}

impl DraftStep {
    /// The run's tree with its nodes in a random order, parents before children.
    fn shuffled(run: &MedusaRun, accepted: u32, random: &mut Random) -> Self {
        let parents = run.parents();
        let mut places: Vec<Option<u32>> = vec![None; parents.len()];
        let place = |places: &[Option<u32>], node: u32| places[node as usize];
        let mut tokens = Vec::with_capacity(parents.len());
        while tokens.len() < parents.len() {
            let mut ready: Vec<usize> = (0..parents.len())
                .filter(|&node| places[node].is_none())
                .filter(|&node| parents[node].is_none_or(|parent| place(&places, parent).is_some()))
                .collect();
            random.shuffle(&mut ready);
            // Some of them now, the others among their children.
            ready.truncate(ready.len().div_ceil(2));
            for node in ready {
                let parent = parents[node].and_then(|parent| place(&places, parent));
                places[node] = Some(tokens.len() as u32);
                tokens.push(DraftToken { parent, token: 1 });
            }
        }
        let path = run.accepted_path(accepted);
        let accepted =
            path.iter().filter_map(|&node| Some(place(&places, node)? as usize)).collect();
        Self { tokens, accepted }
    }
}

impl Moment {
    /// Pages of the tree while it is timed.
    fn pages(&self) -> u32 {
        let pages = self.tokens.iter().map(|tokens| tokens.div_ceil(PAGE_TOKENS));
        pages.sum::<u32>() + GROWTH_PAGES * self.leaves.len() as u32
    }

    /// Makes the tree in `model`, nothing of it computed; the root, and the leaves.
    pub(super) fn build(&self, model: &mut CudaModel) -> Result<(NodeKey, Vec<NodeKey>)> {
        let mut children = vec![Vec::new(); self.parents.len()];
        for (node, parent) in self.parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent].push(node);
            }
        }
        let root = instrument::assume_prompt(model, self.tokens[0])?;
        let mut keys = vec![root; self.parents.len()];
        for (node, children) in children.iter().enumerate() {
            if node > 0 && self.tokens[node] > 0 {
                instrument::assume_tokens(model, keys[node], self.tokens[node])?;
            }
            if !children.is_empty() {
                let made = model.fork(keys[node], children.len())?;
                children.iter().zip(made).for_each(|(&child, key)| keys[child] = key);
            }
        }
        let leaves = self.leaves.iter().map(|&leaf| keys[leaf]).collect();
        Ok((root, leaves))
    }
}

impl Task {
    /// Pages that the task takes at most.
    pub(super) fn pages(&self) -> u32 {
        match &self.work {
            Work::Steps(moments) => moments.iter().map(Moment::pages).max().unwrap_or(0),
            // A draft, and what a hundred of them leave.
            Work::Drafts(draft) => {
                let nodes = draft.steps.iter().map(|step| step.tokens.len()).max().unwrap_or(0);
                let tokens = self.prompt_tokens + nodes as u32 + 100 * 8;
                tokens.div_ceil(PAGE_TOKENS) + 2
            }
            // Nodes of a search are not filled before it merges them.
            Work::Search(_, moment) => 4 * moment.pages(),
            Work::Prompt => self.prompt_tokens.div_ceil(PAGE_TOKENS),
        }
    }

    /// Whether the task is timed with `model`: the paper's with its models, the others with [`COMPARED`].
    pub(super) fn is_for(&self, model: &str) -> bool {
        let papers = ![&CONTEXTS[..], &PROMPTS].concat().contains(&self.prompt_tokens);
        let of_paper = ["llama3-8b", "codellama-34b", "llama3-70b"];
        if papers { of_paper.contains(&model) } else { COMPARED.contains(&model) }
    }

    /// Whether it is timed with every grouping.
    pub(super) fn is_grouped(&self) -> bool {
        !matches!(self.work, Work::Prompt | Work::Search(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_there_at_every_prompt_length() {
        let full = all(false).unwrap();
        assert_eq!(full.len(), 4 * (3 + 2 + 4) + 5 * 4 + 5 + 3);
        let quick: Vec<String> = all(true).unwrap().into_iter().map(|task| task.name).collect();
        let expected = ["few-shot-50", "sorting", "document", "speculative-64"];
        assert_eq!(quick, [expected, expected].concat());
    }

    #[test]
    fn moments_are_trees_whose_leaves_grow() {
        for task in all(false).unwrap() {
            assert!(task.pages() < 2000, "{}: {}", task.name, task.pages());
            let Work::Steps(moments) = &task.work else {
                continue;
            };
            let one = task.name.starts_with("few") || task.name == "one-token";
            assert_eq!(moments.len(), if one { 1 } else { MOMENTS });
            for moment in moments {
                assert_eq!(moment.parents[0], None);
                assert_eq!(moment.tokens[0], task.prompt_tokens);
                for (node, parent) in moment.parents.iter().enumerate().skip(1) {
                    assert!(parent.unwrap() < node);
                    assert!(!moment.leaves.contains(&parent.unwrap()), "a leaf has no child");
                }
                assert!(!moment.leaves.is_empty());
            }
        }
    }

    #[test]
    fn every_step_has_another_draft_of_the_same_shape_and_accepts_a_path_of_it() {
        let tasks = all(true).unwrap();
        let draft = tasks.iter().find_map(|task| match &task.work {
            Work::Drafts(draft) => Some(draft),
            _ => None,
        });
        let steps = &draft.unwrap().steps;
        let depths = |step: &DraftStep| {
            let mut depths = Vec::new();
            for token in &step.tokens {
                depths.push(token.parent.map_or(0, |parent| depths[parent as usize] + 1));
            }
            depths.sort_unstable();
            depths
        };
        for (at, step) in steps.iter().enumerate() {
            assert_eq!(depths(step), depths(&steps[0]));
            assert!(steps[..at].iter().all(|before| before.tokens != step.tokens));
            let mut above = None;
            for &node in &step.accepted {
                assert_eq!(step.tokens[node].parent, above);
                above = Some(node as u32);
            }
        }
        assert!(steps.iter().any(|step| step.accepted.len() > 1));
    }

    #[test]
    fn contexts_and_prompts_are_for_some_models_and_the_paper_s_tasks_for_its_own() {
        let tasks = all(false).unwrap();
        let count = |model| tasks.iter().filter(|task| task.is_for(model)).count();
        let counts = ["llama3-8b", "qwen3-8b", "smollm2-135m", "codellama-34b"].map(count);
        assert_eq!(counts, [64, 28, 28, 36]);
    }
}
