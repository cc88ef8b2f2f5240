//! An index and a forest beside plain lists, and memory that says for each place which beginning it was written for.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use deft::NodeKey;
use deft::cache::{PagePool, PoolError};
use deft::prefix::{PrefixError, PrefixIndex, PrefixStats};
use deft::tree::{ForestError, TokenForest};

/// A leaf of the user's, with the ids of its path.
struct Leaf {
    node: NodeKey,
    tokens: Vec<u32>,
    salt: u64,
}

pub(crate) struct World {
    index: PrefixIndex,
    forest: TokenForest,
    leaves: Vec<Leaf>,
    /// Ids of the paths to nodes that are or were indexed.
    paths: HashMap<NodeKey, (Vec<u32>, u64)>,
    pins: Vec<NodeKey>,
    /// By place (`page * 64 + token`), a digest of the salt and the ids up to the token there.
    memory: Vec<u64>,
}

fn digests(tokens: &[u32], salt: u64) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    let digest = |token: &u32| {
        token.hash(&mut hasher);
        hasher.finish()
    };
    tokens.iter().map(digest).collect()
}

fn in_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl World {
    pub(crate) fn new(pages: u32, budget: u32) -> Self {
        Self {
            index: PrefixIndex::new(budget),
            forest: TokenForest::new(PagePool::new(pages).unwrap()),
            leaves: Vec::new(),
            paths: HashMap::new(),
            pins: Vec::new(),
            memory: vec![0; pages as usize * 64],
        }
    }

    /// The longest beginning of `tokens` that an indexed path has.
    fn expected(&self, tokens: &[u32], salt: u64) -> usize {
        let indexed = self.paths.iter().filter(|(node, _)| self.index.contains(**node));
        let same = indexed.filter(|(_, (_, other))| *other == salt);
        same.map(|(_, (path, _))| in_common(path, tokens)).max().unwrap_or(0)
    }

    /// Notes the ids of all indexed nodes above `leaf`, or of itself.
    fn note_path(&mut self, leaf: NodeKey, tokens: &[u32], salt: u64) {
        let mut next = Some(leaf);
        while let Some(node) = next {
            if self.index.contains(node) {
                let end = self.forest.context_length(node).unwrap() as usize;
                self.paths.insert(node, (tokens[..end].to_vec(), salt));
            }
            next = self.forest.parent(node).unwrap();
        }
    }

    /// Adds the tokens that `node` lacks of `tokens`; `false` where there are no pages.
    fn fill(&mut self, node: NodeKey, tokens: &[u32], salt: u64) -> bool {
        let held = self.forest.context_length(node).unwrap() as u32;
        let rest = tokens.len() as u32 - held;
        if rest == 0 {
            return true;
        }
        let pages = tokens.len() as u32 / 64 + 2;
        self.index.make_room(&mut self.forest, pages).unwrap();
        match self.forest.append(node, rest) {
            Ok(_) => {}
            Err(ForestError::Pool(PoolError::OutOfPages { .. })) => return false,
            Err(error) => panic!("{error}"),
        }
        let mut places = Vec::new();
        let range = held..tokens.len() as u32;
        self.forest.path_targets(node, range, &mut places).unwrap();
        let written = &digests(tokens, salt)[held as usize..];
        for (place, &digest) in places.into_iter().zip(written) {
            self.memory[place as usize] = digest;
        }
        true
    }

    /// Every place of a path has what was written for these ids.
    fn check_path(&self, node: NodeKey, tokens: &[u32], salt: u64) {
        let mut places = Vec::new();
        let held = self.forest.context_length(node).unwrap() as u32;
        self.forest.path_targets(node, 0..held, &mut places).unwrap();
        let found: Vec<u64> = places.iter().map(|&place| self.memory[place as usize]).collect();
        assert_eq!(found, digests(&tokens[..held as usize], salt));
    }

    pub(crate) fn open(&mut self, tokens: &[u32], salt: u64) {
        let expected = self.expected(tokens, salt);
        assert_eq!(self.index.find(tokens, salt), expected);
        let (opened, moves) = self.index.open(&mut self.forest, tokens, salt).unwrap();
        assert!(moves.len() < 64, "{} tokens copied", moves.len());
        for step in moves {
            self.memory[step.to as usize] = self.memory[step.from as usize];
        }
        let matched = opened.matched as usize;
        if matched != expected {
            // No page for the copies.
            assert_eq!(self.forest.pool().free(), 0);
            assert!(matched < expected && expected - matched < 64);
        }
        let node = opened.node;
        assert_eq!(self.forest.context_length(node), Ok(matched as u64));
        self.check_path(node, tokens, salt);
        self.note_path(node, tokens, salt);
        if !self.fill(node, tokens, salt) {
            self.forest.prune(node).unwrap();
            return;
        }
        let tokens = tokens.to_vec();
        self.leaves.push(Leaf { node, tokens, salt });
    }

    fn pick(&self, pick: usize) -> Option<usize> {
        (!self.leaves.is_empty()).then(|| pick % self.leaves.len())
    }

    pub(crate) fn seal(&mut self, pick: usize) {
        let Some(at) = self.pick(pick) else { return };
        let Leaf { node, tokens, salt } = &self.leaves[at];
        let (node, tokens, salt) = (*node, tokens.clone(), *salt);
        let below = self.index.seal(&mut self.forest, node, &tokens, salt).unwrap();
        assert_eq!(self.forest.context_length(below), Ok(tokens.len() as u64));
        assert_eq!(self.forest.is_sealed(below), Ok(false));
        self.check_path(below, &tokens, salt);
        self.note_path(below, &tokens, salt);
        let parent = self.forest.parent(below).unwrap();
        if parent.is_some_and(|parent| self.index.contains(parent)) && below != node {
            assert_eq!(self.index.find(&tokens, salt), tokens.len());
        }
        self.leaves[at].node = below;
    }

    pub(crate) fn decode(&mut self, pick: usize, count: u32) {
        let Some(at) = self.pick(pick) else { return };
        let leaf = &mut self.leaves[at];
        let mut tokens = leaf.tokens.clone();
        tokens.extend((0..count).map(|i| (pick as u32).wrapping_add(i) % 3));
        let (node, salt) = (leaf.node, leaf.salt);
        if tokens.len() < 600 && self.fill(node, &tokens, salt) {
            self.leaves[at].tokens = tokens;
        }
    }

    pub(crate) fn prune_leaf(&mut self, pick: usize) {
        let Some(at) = self.pick(pick) else { return };
        let leaf = self.leaves.swap_remove(at);
        self.index.prune(&mut self.forest, leaf.node).unwrap();
    }

    /// An indexed node, if there is one.
    fn indexed(&self, pick: usize) -> Option<NodeKey> {
        let nodes = self.paths.keys().copied();
        let mut nodes: Vec<_> = nodes.filter(|&node| self.index.contains(node)).collect();
        nodes.sort_unstable();
        (!nodes.is_empty()).then(|| nodes[pick % nodes.len()])
    }

    pub(crate) fn pin(&mut self, pick: usize) {
        if let Some(node) = self.indexed(pick).filter(|_| self.pins.len() < 6) {
            self.index.pin(node).unwrap();
            self.pins.push(node);
        }
    }

    pub(crate) fn unpin(&mut self, pick: usize) {
        if !self.pins.is_empty() {
            let node = self.pins.swap_remove(pick % self.pins.len());
            self.index.unpin(node).unwrap();
        }
    }

    pub(crate) fn make_room(&mut self, pages: u32) {
        let before = self.forest.pool().free();
        let free = self.index.make_room(&mut self.forest, pages).unwrap();
        assert!(free >= before && free == self.forest.pool().free());
        for &pinned in &self.pins {
            assert!(self.index.contains(pinned), "a pinned node was evicted");
        }
    }

    /// Removes an indexed node with all below it, unless somebody pinned one of them.
    pub(crate) fn prune_indexed(&mut self, pick: usize) {
        let Some(node) = self.indexed(pick) else {
            return;
        };
        let is_below = |&leaf: &NodeKey| {
            let up = |&node: &NodeKey| self.forest.parent(node).unwrap();
            std::iter::successors(Some(leaf), up).any(|above| above == node)
        };
        let pinned = self.pins.iter().copied().find(is_below);
        let below: Vec<bool> = self.leaves.iter().map(|leaf| is_below(&leaf.node)).collect();
        match (self.index.prune(&mut self.forest, node), pinned) {
            (Err(PrefixError::Pinned { node }), Some(_)) => assert!(self.pins.contains(&node)),
            (Ok(_), None) => {
                let mut below = below.into_iter();
                self.leaves.retain(|_| !below.next().unwrap());
            }
            (result, pinned) => panic!("{result:?} with {pinned:?} pinned"),
        }
    }

    pub(crate) fn check(&mut self) {
        self.forest.debug_assert_invariants();
        self.index.debug_assert_invariants(&self.forest);
        for leaf in &self.leaves {
            self.check_path(leaf.node, &leaf.tokens, leaf.salt);
        }
        self.paths.retain(|&node, _| self.index.contains(node));
        assert_eq!(self.paths.len(), self.index.stats().nodes);
    }

    /// Gives everything back.
    pub(crate) fn tear_down(mut self) -> PrefixStats {
        self.check();
        for leaf in std::mem::take(&mut self.leaves) {
            self.forest.prune(leaf.node).unwrap();
        }
        for node in std::mem::take(&mut self.pins) {
            self.index.unpin(node).unwrap();
        }
        self.index.clear(&mut self.forest).unwrap();
        self.check();
        let stats = self.index.stats();
        assert_eq!((stats.nodes, stats.pages), (0, 0));
        assert_eq!((self.forest.node_count(), self.forest.pool().live()), (0, 0));
        stats
    }
}
