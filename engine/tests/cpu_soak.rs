//! Hundreds of random tree operations on the CPU's model: no page is lost, and what is left is right.

mod common;

use common::{Definition, assert_rows, definition, tiny, tokens};
use deft::NodeKey;
use deft_engine::{CpuModel, CpuOptions, DraftToken, ModelError, TreeModel, Weights};

/// Pages of the cache: so few that they run out now and then.
const PAGES: u64 = 12;
/// Bytes of a page: K and V of 64 tokens, 2 layers, 2 KV heads of 64 in f32.
const PAGE_BYTES: u64 = 2 * 64 * 2 * 2 * 64 * 4;
const STEPS: usize = 600;

/// Numbers below a bound, from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }

    fn token(&mut self) -> u32 {
        self.below(97) as u32
    }
}

/// The model, its leaves with their paths, and what happened.
struct Soak {
    model: CpuModel,
    reference: Definition,
    leaves: Vec<(NodeKey, Vec<u32>)>,
    numbers: Numbers,
    logits: Vec<f32>,
    accepted: usize,
    refused: usize,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let weights = Weights::synthetic(tiny(false), 11).unwrap();
        let options = CpuOptions { capacity_bytes: PAGES * PAGE_BYTES, ..CpuOptions::default() };
        Self {
            model: CpuModel::load(&weights, options, |_, _| {}).unwrap(),
            reference: definition(&weights),
            leaves: Vec::new(),
            numbers: Numbers(seed),
            logits: Vec::new(),
            accepted: 0,
            refused: 0,
        }
    }

    /// A page's want ends a leaf; nothing else may go wrong.
    fn settle<T>(&mut self, outcome: Result<T, ModelError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(error.to_string().contains("page"), "{error}");
                self.refused += 1;
                if !self.leaves.is_empty() {
                    self.prune();
                }
                None
            }
        }
    }

    fn plant(&mut self) {
        let prompt = tokens(self.numbers.token(), 1 + self.numbers.below(90));
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
        loop {
            let forest = self.model.forest();
            let parent = forest.parent(node).unwrap();
            match parent {
                Some(parent) if forest.children(parent).unwrap().count() == 1 => node = parent,
                _ => break,
            }
        }
        self.model.prune(node).unwrap();
    }

    /// A token more on some leaves.
    fn step(&mut self) {
        let first = self.numbers.below(self.leaves.len());
        let count = 1 + self.numbers.below(self.leaves.len() - first);
        let grown = first..first + count;
        let keys: Vec<NodeKey> = self.leaves[grown.clone()].iter().map(|leaf| leaf.0).collect();
        let next: Vec<u32> = keys.iter().map(|_| self.numbers.token()).collect();
        let outcome = self.model.step(&keys, &next, &mut self.logits);
        if self.settle(outcome).is_some() {
            for ((_, path), token) in self.leaves[grown].iter_mut().zip(next) {
                path.push(token);
            }
        }
    }

    /// A draft of random shape, of which a random path is accepted.
    fn draft(&mut self) {
        let at = self.numbers.below(self.leaves.len());
        let size = 1 + self.numbers.below(9);
        let mut draft = Vec::new();
        for index in 0..size {
            let parent = index.checked_sub(1 + self.numbers.below(3));
            let (parent, token) = (parent.map(|parent| parent as u32), self.numbers.token());
            draft.push(DraftToken { parent, token });
        }
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
        self.accepted += path.len();
        self.leaves[at].1.extend(path.iter().map(|&index| draft[index].token));
    }

    /// A long leaf is near the context's end, and many take long to check.
    fn trim(&mut self) {
        while self.leaves.len() > 8 || self.leaves.iter().any(|(_, path)| path.len() > 250) {
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

    /// The logits after one more token, leaf by leaf, against f64.
    fn check_logits(&mut self) {
        for at in 0..self.leaves.len() {
            let token = self.numbers.token();
            self.logits.fill(f32::NAN);
            let (leaf, path) = &mut self.leaves[at];
            // With every page in use there may be no room for the token.
            if self.model.step(&[*leaf], &[token], &mut self.logits).is_ok() {
                path.push(token);
                let expected = self.reference.logits(path).pop().unwrap();
                assert_rows(&self.logits, [&expected]);
            }
        }
    }
}

#[test]
fn random_trees_leak_no_page_and_agree_with_f64() {
    for seed in 1..=2 {
        let mut soak = Soak::new(seed);
        for step in 0..STEPS {
            match soak.numbers.below(10) {
                _ if soak.leaves.is_empty() => soak.plant(),
                0 => soak.plant(),
                1 => soak.fork(),
                2 => soak.prune(),
                3 | 4 => soak.draft(),
                _ => soak.step(),
            }
            soak.trim();
            soak.check_counts();
            if step % 150 == 149 {
                soak.check_logits();
            }
        }
        assert!(soak.refused > 5 && soak.accepted > 50, "{} {}", soak.refused, soak.accepted);
        let roots: Vec<NodeKey> = soak.model.forest().roots().collect();
        assert!(!roots.is_empty());
        for root in roots {
            soak.model.prune(root).unwrap();
        }
        let forest = soak.model.forest();
        assert_eq!((forest.node_count(), forest.pool().live()), (0, 0));
        assert_eq!(u64::from(forest.pool().free()), PAGES);
    }
}
