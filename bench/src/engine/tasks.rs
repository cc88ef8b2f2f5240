//! The paper's tasks as trees that a model is timed on.

use anyhow::{Context, Result};
use deft::NodeKey;
use deft::abi::PAGE_TOKENS;
use deft_engine::cuda::{CudaModel, instrument};
use deft_engine::{DraftToken, TreeModel};
use deft_workloads::{MedusaRun, ReasoningRun};

use deft_tests::recorded;

const MEDUSA: &str = include_str!("../../../workloads/medusa.json");
/// Tokens that each few-shot continuation has already.
const GENERATED: u32 = 200;
/// Moments of a recorded run that are timed, evenly spread.
const MOMENTS: usize = 4;
/// Pages that a leaf may grow into while it is timed.
const GROWTH_PAGES: u32 = 2;

/// A tree at some moment, parents first. Node 0 is the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    parents: Vec<Option<usize>>,
    tokens: Vec<u32>,
    /// Nodes that grow.
    leaves: Vec<usize>,
}

/// A draft tree, and how much of it was accepted step by step.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) tokens: Vec<DraftToken>,
    /// Nodes of the path that is accepted, one list a step.
    pub(super) accepted: Vec<Vec<usize>>,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Steps of all leaves, timed at each moment.
    Steps(Vec<Moment>),
    /// Drafts below a prompt.
    Drafts(Draft),
}

#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) prompt_tokens: u32,
    pub(super) work: Work,
}

/// The tasks at each of the prompt lengths; a few of them if `quick`.
pub(super) fn all(quick: bool) -> Result<Vec<Task>> {
    let (prompts, widths, sizes): (&[u32], &[usize], &[u32]) = match quick {
        true => (&[1000, 20_000], &[50], &[64]),
        false => (&[1000, 5000, 10_000, 20_000], &[20, 30, 50], &[32, 64, 128, 256]),
    };
    let mut tasks = Vec::new();
    for &prompt_tokens in prompts {
        for &width in widths {
            tasks.push(few_shot(prompt_tokens, width));
        }
        for (name, recorded) in [("sorting", "sorting128ToT"), ("document", "docmergeToT")] {
            tasks.push(thoughts(name, recorded, prompt_tokens)?);
        }
        for run in MedusaRun::parse(MEDUSA)? {
            if sizes.contains(&run.size()) {
                tasks.push(speculative(&run, prompt_tokens));
            }
        }
    }
    Ok(tasks)
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
    let tokens = run.parents().iter();
    let tokens = tokens.map(|&parent| DraftToken { parent, token: 1 }).collect();
    let lengths = run.accepted().iter().flatten();
    let path =
        |&length: &u32| run.accepted_path(length).iter().map(|&node| node as usize).collect();
    Task {
        name: format!("speculative-{}", run.size()),
        prompt_tokens,
        work: Work::Drafts(Draft { tokens, accepted: lengths.map(path).collect() }),
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
                let tokens = self.prompt_tokens + draft.tokens.len() as u32 + 100 * 8;
                tokens.div_ceil(PAGE_TOKENS) + 2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_there_at_every_prompt_length() {
        let full = all(false).unwrap();
        assert_eq!(full.len(), 4 * (3 + 2 + 4));
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
            assert_eq!(moments.len(), if task.name.starts_with("few") { 1 } else { MOMENTS });
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
    fn accepted_paths_lead_down_the_draft() {
        let tasks = all(true).unwrap();
        let draft = tasks.iter().find_map(|task| match &task.work {
            Work::Drafts(draft) => Some(draft),
            Work::Steps(_) => None,
        });
        let draft = draft.unwrap();
        for path in draft.accepted.iter().filter(|path| !path.is_empty()) {
            assert_eq!(draft.tokens[path[0]].parent, None);
            for pair in path.windows(2) {
                assert_eq!(draft.tokens[pair[1]].parent, Some(pair[0] as u32));
            }
        }
    }
}
