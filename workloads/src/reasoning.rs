//! Recorded tree-of-thought runs, replayed step by step.

use serde::Deserialize;

use super::shape::{check_parents, check_range, check_same_length};
use super::{MAX_TOKENS, WorkloadError};
use deft::abi::PAGE_TOKENS;
use deft::cache::PagePool;
use deft::tree::{NodeKey, TokenForest};

/// Most decode steps of a run.
const MAX_STEPS: i64 = 1 << 24;

/// A recorded run: a prompt, and nodes that each grow by a token a step for some steps.
///
/// A node is there from its first step on. After its last it goes, unless it has children; they start
/// later, and when all below it are gone it goes with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningRun {
    prompt_tokens: u32,
    parents: Vec<Option<u32>>,
    /// First and last step, counted from 1; the last is before the first for a node that never grows.
    steps: Vec<(u32, u32)>,
}

#[derive(Deserialize)]
struct RawRun {
    prompt_tokens: i64,
    parents: Vec<i64>,
    start: Vec<i64>,
    end: Vec<i64>,
}

impl ReasoningRun {
    /// Reads a file of runs: a list of `{prompt_tokens, parents, start, end}`; node 0 is the prompt, with
    /// parent -1 and `end` 0.
    ///
    /// # Errors
    /// A [`WorkloadError`] that says which run is wrong, and how.
    pub fn parse(json: &str) -> Result<Vec<Self>, WorkloadError> {
        let raw: Vec<RawRun> = serde_json::from_str(json)?;
        let runs = raw.into_iter().enumerate();
        runs.map(|(i, run)| Self::check(&format!("run {i}"), run)).collect()
    }

    fn check(at: &str, raw: RawRun) -> Result<Self, WorkloadError> {
        check_same_length(at, ("parents", &raw.parents), ("start", &raw.start))?;
        check_same_length(at, ("parents", &raw.parents), ("end", &raw.end))?;
        let parents = check_parents(at, &raw.parents)?;
        check_range(at, "prompt_tokens", raw.prompt_tokens, 1, MAX_TOKENS as i64)?;
        check_range(at, "the end of node 0", raw.end[0], 0, 0)?;
        let mut total = raw.prompt_tokens;
        let mut steps = vec![(0, 0)];
        for (node, parent) in parents.iter().enumerate().skip(1) {
            let (start, end) = (raw.start[node], raw.end[node]);
            check_range(at, "a start", start, 1, MAX_STEPS)?;
            check_range(at, "an end", end, start - 1, MAX_STEPS)?;
            let above = parent.map_or(0, |parent| raw.end[parent as usize]);
            if start <= above {
                return Err(WorkloadError::Start { at: at.to_owned(), node, start, end: above });
            }
            total += end + 1 - start;
            check_range(at, "the run's length so far", total, 1, MAX_TOKENS as i64)?;
            steps.push((start as u32, end as u32));
        }
        Ok(Self { prompt_tokens: raw.prompt_tokens as u32, parents, steps })
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The same run on a prompt of `tokens` tokens.
    ///
    /// # Errors
    /// [`WorkloadError::OutOfRange`] for a prompt of no tokens or more than [`MAX_TOKENS`] with the rest.
    pub fn with_prompt(mut self, tokens: u32) -> Result<Self, WorkloadError> {
        let grown = self.steps.iter().skip(1);
        let grown: i64 = grown.map(|&(start, end)| i64::from(end + 1 - start)).sum();
        let most = MAX_TOKENS as i64 - grown;
        check_range("run", "prompt_tokens", i64::from(tokens), 1, most)?;
        self.prompt_tokens = tokens;
        Ok(self)
    }

    /// Parent of each node.
    pub fn parents(&self) -> &[Option<u32>] {
        &self.parents
    }

    /// First and last step in which a node grows.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn steps_of(&self, node: u32) -> (u32, u32) {
        self.steps[node as usize]
    }

    /// Number of decode steps.
    pub fn steps(&self) -> u32 {
        self.steps.iter().map(|&(_, end)| end).max().unwrap_or(0)
    }

    /// Pages that hold all of the run at once.
    fn most_pages(&self) -> u32 {
        let nodes = self.steps.iter().skip(1);
        let nodes = nodes.map(|(start, end)| (end + 1 - start).div_ceil(PAGE_TOKENS));
        self.prompt_tokens.div_ceil(PAGE_TOKENS) + nodes.sum::<u32>()
    }

    /// Begins a replay.
    ///
    /// # Errors
    /// Those of making a forest of that size.
    pub fn replay(&self) -> Result<ReasoningReplay<'_>, WorkloadError> {
        let mut forest = TokenForest::new(PagePool::new(self.most_pages())?);
        let root = forest.insert_root(self.prompt_tokens)?;
        let mut keys = vec![None; self.parents.len()];
        keys[0] = Some(root);
        let mut open_children = vec![0; self.parents.len()];
        for &parent in self.parents.iter().flatten() {
            open_children[parent as usize] += 1;
        }
        let mut by_start: Vec<u32> = (1..self.parents.len() as u32).collect();
        by_start.sort_by_key(|&node| (self.steps_of(node).0, self.parents[node as usize]));
        Ok(ReasoningReplay {
            run: self,
            forest,
            keys,
            open_children,
            by_start,
            next_born: 0,
            present: Vec::new(),
            growing: Vec::new(),
            leaves: Vec::new(),
            step: 0,
        })
    }
}

/// A run being replayed on a forest.
#[derive(Debug)]
pub struct ReasoningReplay<'a> {
    run: &'a ReasoningRun,
    forest: TokenForest,
    keys: Vec<Option<NodeKey>>,
    /// Children of each node that are there or still to come.
    open_children: Vec<u32>,
    by_start: Vec<u32>,
    next_born: usize,
    /// Nodes that have come and not yet ended.
    present: Vec<u32>,
    growing: Vec<u32>,
    leaves: Vec<NodeKey>,
    step: u32,
}

/// What a step of a replay changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasoningStep {
    /// The step, counted from 1.
    pub step: u32,
    /// Nodes that went before the step.
    pub pruned: Vec<u32>,
    /// Nodes that came with it.
    pub born: Vec<u32>,
}

impl ReasoningReplay<'_> {
    /// Takes the next step: prunes what has ended, branches what begins, and adds a token to every node
    /// that grows. `None` after the last step.
    ///
    /// # Errors
    /// [`WorkloadError::Forest`], out of pages or nodes.
    pub fn advance(&mut self) -> Result<Option<ReasoningStep>, WorkloadError> {
        if self.step >= self.run.steps() {
            return Ok(None);
        }
        self.step += 1;
        let mut change = ReasoningStep { step: self.step, ..ReasoningStep::default() };
        let present = std::mem::take(&mut self.present);
        for node in present {
            if self.run.steps_of(node).1 >= self.step {
                self.present.push(node);
            } else if self.open_children[node as usize] == 0 {
                self.prune(node, &mut change.pruned)?;
            }
        }
        self.branch(&mut change.born)?;
        let ends = |node: u32| self.run.steps_of(node).1;
        self.growing.clear();
        let growing = self.present.iter().filter(|&&node| ends(node) >= self.step);
        self.growing.extend(growing);
        self.leaves.clear();
        let keys = self.growing.iter().filter_map(|&node| self.keys[node as usize]);
        self.leaves.extend(keys);
        if !self.leaves.is_empty() {
            self.forest.extend(&self.leaves, 1)?;
        }
        Ok(Some(change))
    }

    /// Prunes `node` and those above it that have nothing left below and have ended.
    fn prune(&mut self, node: u32, pruned: &mut Vec<u32>) -> Result<(), WorkloadError> {
        let mut node = node;
        loop {
            if let Some(key) = self.keys[node as usize].take() {
                self.forest.prune(key)?;
                pruned.push(node);
            }
            let Some(parent) = self.run.parents[node as usize] else {
                return Ok(());
            };
            let open = &mut self.open_children[parent as usize];
            *open -= 1;
            if *open > 0 || parent == 0 {
                return Ok(());
            }
            node = parent;
        }
    }

    fn branch(&mut self, born: &mut Vec<u32>) -> Result<(), WorkloadError> {
        let waiting = &self.by_start[self.next_born..];
        let count =
            waiting.iter().take_while(|&&node| self.run.steps_of(node).0 == self.step).count();
        let parent_of = |node: &u32| self.run.parents[*node as usize];
        for siblings in waiting[..count].chunk_by(|a, b| parent_of(a) == parent_of(b)) {
            let parent = parent_of(&siblings[0]).and_then(|parent| self.keys[parent as usize]);
            let Some(parent) = parent else { continue };
            let made = self.forest.fork(parent, siblings.len())?;
            for (&node, key) in siblings.iter().zip(made) {
                self.keys[node as usize] = Some(key);
                self.present.push(node);
                born.push(node);
            }
        }
        self.next_born += count;
        Ok(())
    }

    /// The forest as it is now.
    pub fn forest(&self) -> &TokenForest {
        &self.forest
    }

    /// Nodes that got a token in this step: those that ask. In a recorded run there may be none.
    pub fn growing(&self) -> &[u32] {
        &self.growing
    }

    /// Their keys, in the same order.
    pub fn leaves(&self) -> &[NodeKey] {
        &self.leaves
    }

    /// A node's key, while it is there.
    pub fn key(&self, node: u32) -> Option<NodeKey> {
        self.keys.get(node as usize).copied().flatten()
    }
}
