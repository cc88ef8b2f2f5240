//! The paper's decode tasks, step by step on a forest.

use anyhow::{Context, Result};
use deft::abi::PAGE_TOKENS;
use deft::cache::PagePool;
use deft::tree::{NodeKey, TokenForest};
use deft_workloads::{MedusaRun, ReasoningReplay, ReasoningRun};

use deft_tests::recorded::TASKS;

/// Decode steps of a few-shot task.
const FEW_SHOT_STEPS: u32 = 400;
/// Tokens that a speculative task generates at least.
const GENERATED: u32 = 5000;
const MEDUSA: &str = include_str!("../../../workloads/medusa.json");

/// What is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Branches of one token a step below a prompt.
    FewShot { branches: u32 },
    /// Recorded trees of thought.
    Reasoning(Reasoning),
    /// A draft tree below a context that grows by what was accepted.
    Speculative { tokens: u32 },
}

/// A task with recorded runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reasoning {
    Sorting,
    Document,
    Keyword,
    Set,
}

impl Reasoning {
    pub(crate) const ALL: [Self; 4] = [Self::Sorting, Self::Document, Self::Keyword, Self::Set];

    fn name(self) -> &'static str {
        match self {
            Self::Sorting => "sorting",
            Self::Document => "document",
            Self::Keyword => "keyword",
            Self::Set => "set",
        }
    }

    fn file(self) -> &'static str {
        // In the order of the tasks.
        TASKS[self as usize].1
    }
}

/// A run of a task, to be replayed.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    FewShot { prompt: u32, branches: u32 },
    Reasoning(ReasoningRun),
    Speculative { prompt: u32, medusa: MedusaRun },
}

impl Task {
    pub(crate) fn name(self) -> String {
        match self {
            Self::FewShot { branches } => format!("few-shot-{branches}"),
            Self::Reasoning(reasoning) => reasoning.name().to_owned(),
            Self::Speculative { tokens } => format!("speculative-{tokens}"),
        }
    }

    /// The first `most` runs, on a prompt of `prompt` tokens; `None` leaves recorded runs theirs.
    pub(crate) fn runs(self, prompt: Option<u32>, most: usize) -> Result<Vec<Run>> {
        let needed = || prompt.context("this task has no recorded prompt");
        Ok(match self {
            Self::FewShot { branches } => vec![Run::FewShot { prompt: needed()?, branches }],
            Self::Reasoning(reasoning) => {
                let runs = ReasoningRun::parse(reasoning.file())?.into_iter().take(most);
                let runs = runs.map(|run| match prompt {
                    Some(tokens) => run.with_prompt(tokens).map(Run::Reasoning),
                    None => Ok(Run::Reasoning(run)),
                });
                runs.collect::<Result<_, _>>()?
            }
            Self::Speculative { tokens } => {
                let mut medusa = MedusaRun::parse(MEDUSA)?.into_iter();
                let medusa = medusa.find(|run| run.size() == tokens);
                vec![Run::Speculative {
                    prompt: needed()?,
                    medusa: medusa.with_context(|| format!("no draft tree of {tokens}"))?,
                }]
            }
        })
    }
}

impl Run {
    /// Begins a replay.
    pub(crate) fn replay(&self) -> Result<Replay<'_>> {
        Ok(match self {
            Self::FewShot { prompt, branches } => {
                let pages = pages(*prompt) + branches * pages(FEW_SHOT_STEPS);
                let mut forest = TokenForest::new(PagePool::new(pages)?);
                let root = forest.insert_root(*prompt)?;
                let branches = forest.fork(root, *branches as usize)?;
                Replay::FewShot(Branches { forest, branches, step: 0 })
            }
            Self::Reasoning(run) => Replay::Reasoning(run.replay()?),
            Self::Speculative { prompt, medusa } => {
                // Drafts may take new pages before the old ones return.
                let tokens = prompt + GENERATED + 2 * medusa.size() + PAGE_TOKENS;
                let mut forest = TokenForest::new(PagePool::new(pages(tokens))?);
                let trunk = forest.insert_root(*prompt)?;
                Replay::Speculative(Drafts {
                    medusa,
                    forest,
                    trunk,
                    draft: Vec::new(),
                    generated: 0,
                    step: 0,
                })
            }
        })
    }
}

fn pages(tokens: u32) -> u32 {
    tokens.div_ceil(PAGE_TOKENS)
}

/// A run being replayed.
pub(crate) enum Replay<'a> {
    FewShot(Branches),
    Reasoning(ReasoningReplay<'a>),
    Speculative(Drafts<'a>),
}

/// Branches that all grow.
pub(crate) struct Branches {
    forest: TokenForest,
    branches: Vec<NodeKey>,
    step: u32,
}

/// Drafts, one a step.
pub(crate) struct Drafts<'a> {
    medusa: &'a MedusaRun,
    forest: TokenForest,
    trunk: NodeKey,
    draft: Vec<NodeKey>,
    generated: u32,
    step: usize,
}

impl Replay<'_> {
    /// Takes the next step in which something is asked; false after the last.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        match self {
            Self::FewShot(branches) => {
                let more = branches.step < FEW_SHOT_STEPS;
                if more {
                    branches.step += 1;
                    branches.forest.extend(&branches.branches, 1)?;
                }
                Ok(more)
            }
            Self::Reasoning(replay) => loop {
                if replay.advance()?.is_none() {
                    return Ok(false);
                }
                if !replay.leaves().is_empty() {
                    return Ok(true);
                }
            },
            Self::Speculative(drafts) => drafts.advance(),
        }
    }

    pub(crate) fn forest(&self) -> &TokenForest {
        match self {
            Self::FewShot(branches) => &branches.forest,
            Self::Reasoning(replay) => replay.forest(),
            Self::Speculative(drafts) => &drafts.forest,
        }
    }

    /// The nodes that ask in this step.
    pub(crate) fn queries(&self) -> &[NodeKey] {
        match self {
            Self::FewShot(branches) => &branches.branches,
            Self::Reasoning(replay) => replay.leaves(),
            Self::Speculative(drafts) => &drafts.draft,
        }
    }

    /// Steps in a row with the same number differ in the lengths of nodes alone.
    pub(crate) fn shape(&self) -> (u64, usize) {
        match self {
            // A node that stops growing but has children to come leaves the forest's shape alone.
            Self::Reasoning(replay) => (replay.forest().shape_epoch(), replay.leaves().len()),
            Self::FewShot(_) | Self::Speculative(_) => (0, 0),
        }
    }
}

impl Drafts<'_> {
    /// Accepts as many tokens as were recorded, over and over, and drafts anew.
    fn advance(&mut self) -> Result<bool> {
        if self.step > 0 {
            let lengths = &self.medusa.accepted()[0];
            let length = lengths[(self.step - 1) % lengths.len()];
            let path = self.medusa.accepted_path(length).iter();
            let path: Vec<NodeKey> = path.map(|&node| self.draft[node as usize]).collect();
            self.forest.accept(self.trunk, &path)?;
            self.generated += length;
        }
        if self.generated >= GENERATED {
            return Ok(false);
        }
        self.step += 1;
        self.draft = self.forest.insert_draft(self.trunk, &self.medusa.draft())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(task: Task, prompt: Option<u32>) -> u32 {
        let runs = task.runs(prompt, 1).unwrap();
        let mut replay = runs[0].replay().unwrap();
        let mut steps = 0;
        while replay.advance().unwrap() {
            assert!(!replay.queries().is_empty());
            steps += 1;
        }
        steps
    }

    #[test]
    fn a_few_shot_task_has_the_papers_steps_and_branches() {
        let task = Task::FewShot { branches: 3 };
        assert_eq!(count(task, Some(100)), 400);
        let runs = task.runs(Some(100), 9).unwrap();
        let mut replay = runs[0].replay().unwrap();
        replay.advance().unwrap();
        let view = replay.forest().view(replay.queries()).unwrap();
        assert_eq!(view.queries, 3);
        assert_eq!(view.runs[0].tokens, 100);
    }

    #[test]
    fn speculation_takes_the_steps_that_the_recorded_acceptance_needs() {
        // 5,000 tokens at 4.33 a step (docs/paper-io.md), whatever the draft's size.
        for tokens in [32, 256] {
            assert_eq!(count(Task::Speculative { tokens }, Some(1000)), 1157);
        }
    }

    #[test]
    fn a_draft_is_the_topology_on_a_context_that_grows_by_what_was_accepted() {
        let task = Task::Speculative { tokens: 64 };
        let runs = task.runs(Some(1000), 1).unwrap();
        let Run::Speculative { medusa, .. } = &runs[0] else {
            panic!("another kind of run");
        };
        let mut replay = runs[0].replay().unwrap();
        let mut context = 1000;
        for accepted in &medusa.accepted()[0][..50] {
            assert!(replay.advance().unwrap());
            let view = replay.forest().view(replay.queries()).unwrap();
            assert_eq!((view.queries, view.runs[0].tokens), (64, context));
            context += accepted;
        }
    }

    #[test]
    fn a_reasoning_task_keeps_its_recorded_prompt_or_takes_another() {
        let task = Task::Reasoning(Reasoning::Keyword);
        for (prompt, expected) in [(None, 1351..=1506), (Some(5000), 5000..=5000)] {
            let runs = task.runs(prompt, 2).unwrap();
            assert_eq!(runs.len(), 2);
            for run in &runs {
                let mut replay = run.replay().unwrap();
                replay.advance().unwrap();
                let view = replay.forest().view(replay.queries()).unwrap();
                assert!(expected.contains(&view.runs[0].tokens));
            }
        }
        assert_eq!(count(task, None), count(task, Some(8000)));
    }
}
