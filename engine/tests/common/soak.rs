//! Random requests on any model: prompts, forks, steps, drafts, prunes and cancelled requests, with their paths kept.

use deft::NodeKey;
use deft_engine::select::Select;
use deft_engine::{DraftToken, ModelError, TreeModel};

/// Leaves that are kept at most, and tokens of a path.
const LEAVES: usize = 8;
const PATH: usize = 250;
/// Tokens of a prompt at most, and of a draft.
const PROMPT: usize = 90;
const DRAFT: usize = 9;

/// Numbers below a bound, from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }

    fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocabulary) as u32).collect()
    }
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    /// Tokens of drafts that were kept.
    pub(crate) accepted: usize,
    /// Calls for which there were too few pages.
    pub(crate) refused: usize,
    /// Requests that went as a whole, some of them with a draft that nobody had answered.
    pub(crate) cancelled: usize,
}

/// A model with a context of more than 250 tokens, its leaves with their paths, and what happened.
pub(crate) struct Soak<M> {
    pub(crate) model: M,
    pub(crate) happened: Happened,
    leaves: Vec<(NodeKey, Vec<u32>)>,
    numbers: Numbers,
    logits: Vec<f32>,
}

impl<M: TreeModel> Soak<M> {
    pub(crate) fn new(model: M, seed: u64) -> Self {
        let (leaves, logits) = (Vec::new(), Vec::new());
        Self { model, happened: Happened::default(), leaves, numbers: Numbers(seed), logits }
    }

    /// From here on the requests of `seed` again.
    pub(crate) fn restart(&mut self, seed: u64) {
        self.numbers = Numbers(seed);
    }

    /// One random operation; afterwards the counts are right.
    pub(crate) fn turn(&mut self) {
        match self.numbers.below(40) {
            _ if self.leaves.is_empty() => self.plant(),
            0..=4 => self.plant(),
            5..=8 => self.fork(),
            9..=11 => self.prune(),
            12 => self.cancel(),
            13..=19 => self.draft(),
            20..=23 => self.ask(),
            _ => self.step(),
        }
        self.trim();
        self.check_counts();
    }

    /// Every number of rows that a prompt, a step and a draft of [`Soak::turn`] may have, each twice: what a model keeps
    /// of sizes that it has seen is then there. It takes 11 pages at once.
    pub(crate) fn every_size(&mut self) {
        for length in 1..=PROMPT {
            self.plant_of(length);
            self.clear();
        }
        self.plant_of(PROMPT / 2);
        while self.leaves.len() < LEAVES {
            self.fork();
        }
        self.trim();
        for _ in 0..2 {
            for count in 1..=LEAVES {
                self.step_of(0, count);
                self.ask_of(0, count);
            }
            for size in 1..=DRAFT {
                self.draft_of(size);
            }
        }
        assert_eq!(self.happened.refused, 0, "there is room");
        self.clear();
    }

    /// Removes every tree.
    pub(crate) fn clear(&mut self) {
        let roots: Vec<NodeKey> = self.model.forest().roots().collect();
        for root in roots {
            self.model.prune(root).unwrap();
        }
        self.leaves.clear();
        let forest = self.model.forest();
        assert_eq!((forest.node_count(), forest.pool().live()), (0, 0));
    }

    /// A token more on each leaf alone; `see` gets its path and its logits, which were poisoned first.
    pub(crate) fn answers(&mut self, mut see: impl FnMut(&[u32], &[f32])) {
        for at in 0..self.leaves.len() {
            let token = self.token();
            self.logits.fill(f32::NAN);
            let (leaf, path) = &mut self.leaves[at];
            // With every page in use there may be no room for the token.
            if self.model.step(&[*leaf], &[token], &mut self.logits).is_ok() {
                path.push(token);
                see(path, &self.logits);
            }
        }
    }

    fn token(&mut self) -> u32 {
        self.numbers.below(self.model.vocabulary()) as u32
    }

    /// A page's want ends a leaf; nothing else may go wrong.
    fn settle<T>(&mut self, outcome: Result<T, ModelError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(error.to_string().contains("page"), "{error}");
                self.happened.refused += 1;
                if !self.leaves.is_empty() {
                    self.prune();
                }
                None
            }
        }
    }

    fn plant(&mut self) {
        let length = 1 + self.numbers.below(PROMPT);
        self.plant_of(length);
    }

    fn plant_of(&mut self, length: usize) {
        let prompt = self.numbers.tokens(length, self.model.vocabulary());
        let root = self.model.insert_prompt(&prompt, &mut self.logits);
        if let Some(root) = self.settle(root) {
            self.leaves.push((root, prompt));
        }
    }

    fn fork(&mut self) {
        let at = self.numbers.below(self.leaves.len());
        let children = 1 + self.numbers.below(3);
        let (node, path) = self.leaves.swap_remove(at);
        for child in self.model.fork(node, children).unwrap() {
            self.leaves.push((child, path.clone()));
        }
    }

    /// Removes a leaf, and the nodes above that led to it alone.
    fn prune(&mut self) {
        let at = self.numbers.below(self.leaves.len());
        let (mut node, _) = self.leaves.swap_remove(at);
        let forest = self.model.forest();
        while let Some(parent) = forest.parent(node).unwrap()
            && forest.children(parent).unwrap().count() == 1
        {
            node = parent;
        }
        self.model.prune(node).unwrap();
    }

    /// Removes the whole tree of a leaf, half of the time while a draft waits there for its answer.
    fn cancel(&mut self) {
        let at = self.numbers.below(self.leaves.len());
        let leaf = self.leaves[at].0;
        let forest = self.model.forest();
        let mut root = leaf;
        while let Some(parent) = forest.parent(root).unwrap() {
            root = parent;
        }
        let gone = forest.leaves(root).unwrap();
        self.leaves.retain(|(leaf, _)| !gone.contains(leaf));
        if self.numbers.below(2) == 0 {
            let size = 1 + self.numbers.below(DRAFT);
            let draft = self.drafted(size);
            // Refused or not: it goes.
            let _ = self.model.verify(leaf, &draft, &mut self.logits);
        }
        self.model.prune(root).unwrap();
        self.happened.cancelled += 1;
    }

    /// Some leaves that stand side by side.
    fn some(&mut self) -> (usize, usize) {
        let first = self.numbers.below(self.leaves.len());
        (first, 1 + self.numbers.below(self.leaves.len() - first))
    }

    /// A token more on some leaves.
    fn step(&mut self) {
        let (first, count) = self.some();
        self.step_of(first, count);
    }

    fn step_of(&mut self, first: usize, count: usize) {
        let (keys, next) = self.grown(first, count);
        let outcome = self.model.step(&keys, &next, &mut self.logits);
        if self.settle(outcome).is_some() {
            self.push(first, &next);
        }
    }

    /// The same, and of each row only its two likeliest tokens.
    fn ask(&mut self) {
        let (first, count) = self.some();
        self.ask_of(first, count);
    }

    fn ask_of(&mut self, first: usize, count: usize) {
        let (keys, next) = self.grown(first, count);
        let asked = vec![Select::Top { k: 2 }; count];
        let outcome = self.model.step_select(&keys, &next, &asked);
        if self.settle(outcome).is_some() {
            self.push(first, &next);
        }
    }

    fn grown(&mut self, first: usize, count: usize) -> (Vec<NodeKey>, Vec<u32>) {
        let keys = self.leaves[first..first + count].iter().map(|leaf| leaf.0).collect();
        (keys, self.numbers.tokens(count, self.model.vocabulary()))
    }

    fn push(&mut self, first: usize, next: &[u32]) {
        for ((_, path), &token) in self.leaves[first..].iter_mut().zip(next) {
            path.push(token);
        }
    }

    /// A draft of random shape, of which a random path is accepted.
    fn draft(&mut self) {
        let size = 1 + self.numbers.below(DRAFT);
        self.draft_of(size);
    }

    fn drafted(&mut self, size: usize) -> Vec<DraftToken> {
        let draft = (0..size).map(|index| {
            let parent = index.checked_sub(1 + self.numbers.below(3));
            DraftToken { parent: parent.map(|parent| parent as u32), token: self.token() }
        });
        draft.collect()
    }

    fn draft_of(&mut self, size: usize) {
        let at = self.numbers.below(self.leaves.len());
        let draft = self.drafted(size);
        let trunk = self.leaves[at].0;
        let verified = self.model.verify(trunk, &draft, &mut self.logits);
        let Some(keys) = self.settle(verified) else {
            return;
        };
        let mut chosen = self.numbers.below(size + 1).checked_sub(1);
        let mut path = Vec::new();
        while let Some(index) = chosen {
            path.push(index);
            chosen = draft[index].parent.map(|parent| parent as usize);
        }
        path.reverse();
        let accepted: Vec<NodeKey> = path.iter().map(|&index| keys[index]).collect();
        let before = self.model.forest().pool().free();
        self.model.accept(trunk, &accepted).unwrap();
        assert!(self.model.forest().pool().free() >= before);
        self.happened.accepted += path.len();
        self.leaves[at].1.extend(path.iter().map(|&index| draft[index].token));
    }

    /// A long leaf is near the context's end, and many take long to check.
    fn trim(&mut self) {
        while self.leaves.len() > LEAVES || self.leaves.iter().any(|(_, path)| path.len() > PATH) {
            self.prune();
        }
    }

    fn check_counts(&self) {
        let forest = self.model.forest();
        forest.debug_assert_invariants();
        for (leaf, path) in &self.leaves {
            assert_eq!(forest.context_length(*leaf).unwrap(), path.len() as u64);
        }
        let held: usize = forest.roots().map(|root| forest.leaves(root).unwrap().len()).sum();
        assert_eq!(held, self.leaves.len());
    }
}
