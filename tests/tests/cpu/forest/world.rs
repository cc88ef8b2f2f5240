//! A forest and its model side by side, and a store that holds what the forest says it holds.

mod check;
mod drafts;

use std::collections::{BTreeMap, BTreeSet};

use deft::cache::{PageId, PagePool};
use deft::tree::{
    DraftNode, ForestError, GrowthCursor, NodeKey, TokenForest, TreeView, ViewScratch,
};
use proptest::sample::Index;

use crate::forest::model::{Model, PAGE};

/// A node, of all or of those that are no drafts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    pub(crate) index: Index,
    pub(crate) any: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Root(u32),
    Fork(Pick, usize),
    Append(Pick, u32),
    Extend {
        leaves: Vec<Index>,
        k: u32,
        distinct: bool,
    },
    Shrink(Pick, u32),
    Draft(Pick, Vec<(Option<Index>, u32)>),
    /// A draft grows, or begins, by a token below each of these of its nodes.
    Grow(Pick, Vec<Index>),
    /// Draft leaves that go.
    PruneDraft(Vec<Index>),
    Gather(Pick),
    Accept(Pick, Vec<Index>),
    Merge(Pick),
    Prune(Pick),
    RemoveTree(Pick),
}

/// A plan's view of the past: growth has to bring it up to now.
struct Mirror {
    cursor: GrowthCursor,
    queries: Vec<NodeKey>,
    pages: BTreeMap<u32, Vec<PageId>>,
}

pub(crate) struct World {
    forest: TokenForest,
    model: Model,
    /// Token ids by `page * 64 + token`; 0 for what was never written.
    store: Vec<u64>,
    mirror: Option<Mirror>,
    scratch: ViewScratch,
    view: TreeView,
}

impl World {
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            forest: TokenForest::new(PagePool::new(pages).unwrap()),
            model: Model::default(),
            store: vec![0; pages as usize * PAGE],
            mirror: None,
            scratch: ViewScratch::default(),
            view: TreeView::default(),
        }
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.forest.pool().capacity() as usize - self.model.live_pages()
    }

    /// Runs `op` on forest and model; where the model says that it cannot be, the forest has to refuse
    /// and stay as it was.
    pub(crate) fn run(&mut self, op: Op) {
        let before = self.observe();
        let shape = self.forest.shape_epoch();
        let done = match op {
            Op::Root(length) => self.root(length),
            Op::Fork(pick, n) => self.fork(pick, n),
            Op::Append(pick, k) => self.append(pick, k),
            Op::Extend { leaves, k, distinct } => self.extend(&leaves, k, distinct),
            Op::Shrink(pick, k) => self.shrink(pick, k),
            Op::Draft(pick, draft) => self.draft(pick, &draft),
            Op::Grow(pick, parents) => self.grow(pick, &parents),
            Op::PruneDraft(leaves) => self.prune_draft_leaves(&leaves),
            Op::Gather(pick) => self.gather(pick),
            Op::Accept(pick, path) => self.accept(pick, &path),
            Op::Merge(pick) => self.pick(pick).is_some_and(|node| self.merge(node)),
            Op::Prune(pick) => self.prune(pick, false),
            Op::RemoveTree(pick) => self.prune(pick, true),
        };
        if !done {
            assert_eq!(self.observe(), before, "a refusal changes nothing");
            assert_eq!(self.forest.shape_epoch(), shape);
        }
    }

    fn pick(&self, pick: Pick) -> Option<usize> {
        let mut nodes = self.model.alive();
        nodes.retain(|&node| pick.any || !self.model.is_draft(node));
        (!nodes.is_empty()).then(|| nodes[pick.index.index(nodes.len())])
    }

    fn root(&mut self, length: u32) -> bool {
        let fits = (length as usize).div_ceil(PAGE) <= self.free_pages();
        let root = self.forest.insert_root(length);
        assert_eq!(root.is_ok(), fits, "{root:?}");
        if let Ok(key) = root {
            let node = self.model.insert(key, None);
            self.model.grow(node, length);
            self.write(node, 0);
        }
        fits
    }

    fn fork(&mut self, pick: Pick, n: usize) -> bool {
        let Some(node) = self.pick(pick) else {
            return false;
        };
        let may = n > 0 && !self.model.is_draft(node) && !self.model.is_drafted(node);
        let children = self.forest.fork(self.model.nodes[node].key, n);
        assert_eq!(children.is_ok(), may, "{children:?}");
        if let Ok(children) = children {
            assert_eq!(children.len(), n);
            self.model.nodes[node].sealed = true;
            for key in children {
                self.model.insert(key, Some(node));
            }
        }
        may
    }

    fn append(&mut self, pick: Pick, k: u32) -> bool {
        let Some(node) = self.pick(pick) else {
            return false;
        };
        let may = k > 0
            && self.model.is_growing(node)
            && self.model.pages_to_grow(node, k) <= self.free_pages();
        let added = self.forest.append(self.model.nodes[node].key, k);
        assert_eq!(added.is_ok(), may, "{added:?}");
        if may {
            let length = self.model.nodes[node].tokens.len();
            assert_eq!(added, Ok(length as u32..length as u32 + k));
            self.model.grow(node, k);
            self.write(node, length);
        }
        may
    }

    fn extend(&mut self, leaves: &[Index], k: u32, only_distinct: bool) -> bool {
        let mut growing = self.model.alive();
        growing.retain(|&node| self.model.is_growing(node));
        if growing.is_empty() {
            return false;
        }
        let mut leaves: Vec<usize> =
            leaves.iter().map(|i| growing[i.index(growing.len())]).collect();
        let distinct: BTreeSet<usize> = leaves.iter().copied().collect();
        if only_distinct {
            leaves = distinct.iter().rev().copied().collect();
        }
        let pages: usize = leaves.iter().map(|&leaf| self.model.pages_to_grow(leaf, k)).sum();
        let may = k > 0
            && !leaves.is_empty()
            && distinct.len() == leaves.len()
            && pages <= self.free_pages();
        let keys: Vec<_> = leaves.iter().map(|&i| self.model.nodes[i].key).collect();
        let taken = self.forest.extend(&keys, k);
        assert_eq!(taken.is_ok(), may, "{taken:?}");
        if may {
            assert_eq!(taken, Ok(pages as u32));
            self.check_live_targets(&keys);
            for leaf in leaves {
                let length = self.model.nodes[leaf].tokens.len();
                self.model.grow(leaf, k);
                self.write(leaf, length);
            }
        }
        may
    }

    fn shrink(&mut self, pick: Pick, k: u32) -> bool {
        let Some(node) = self.pick(pick) else {
            return false;
        };
        let length = self.model.nodes[node].tokens.len();
        let kept = length.checked_sub(k as usize);
        let freed = kept.map(|kept| length.div_ceil(PAGE) - kept.div_ceil(PAGE));
        let may = k > 0 && self.model.is_growing(node) && freed.is_some();
        let shrunk = self.forest.shrink(&[self.model.nodes[node].key], k);
        assert_eq!(shrunk.is_ok(), may, "{shrunk:?}");
        if let Ok(shrunk) = shrunk {
            assert_eq!(Some(shrunk as usize), freed);
            self.model.nodes[node].tokens.truncate(length - k as usize);
        }
        may
    }

    fn draft(&mut self, pick: Pick, draft: &[(Option<Index>, u32)]) -> bool {
        let Some(trunk) = self.pick(pick) else {
            return false;
        };
        let parent = |i: usize, parent: Option<Index>| parent.filter(|_| i > 0).map(|p| p.index(i));
        let parents: Vec<Option<usize>> = (0..).zip(draft).map(|(i, d)| parent(i, d.0)).collect();
        let nodes = draft.iter().zip(&parents).map(|(node, parent)| DraftNode {
            parent: parent.map(|parent| parent as u32),
            tokens: node.1,
        });
        let nodes: Vec<_> = nodes.collect();
        let tokens: u32 = draft.iter().map(|node| node.1).sum();
        let may =
            self.model.is_growing(trunk) && (tokens as usize).div_ceil(PAGE) <= self.free_pages();
        let keys = self.forest.insert_draft(self.model.nodes[trunk].key, &nodes);
        assert_eq!(keys.is_ok(), may, "{keys:?}");
        if let Ok(keys) = keys {
            let nodes = keys.iter().zip(&parents).zip(draft);
            let nodes: Vec<_> = nodes.map(|((&key, &p), d)| (key, p, d.1)).collect();
            let first = self.model.nodes.len();
            self.model.insert_block(trunk, &nodes);
            for node in first..self.model.nodes.len() {
                self.write(node, 0);
            }
        }
        may
    }

    fn accept(&mut self, pick: Pick, path: &[Index]) -> bool {
        let Some(trunk) = self.pick_trunk(pick) else { return false };
        let may = self.model.is_drafted(trunk);
        let mut nodes = Vec::new();
        for index in path {
            let children = self.model.children(*nodes.last().unwrap_or(&trunk));
            if children.is_empty() || !self.model.is_drafted(trunk) {
                break;
            }
            nodes.push(children[index.index(children.len())]);
        }
        let keys: Vec<_> = nodes.iter().map(|&i| self.model.nodes[i].key).collect();
        let moves = self.forest.accept(self.model.nodes[trunk].key, &keys);
        assert_eq!(moves.is_ok(), may, "{moves:?}");
        if let Ok(moves) = moves {
            let tokens: usize = nodes.iter().map(|&i| self.model.nodes[i].tokens.len()).sum();
            if self.model.pages_to_grow(trunk, tokens as u32) <= self.free_pages() {
                let targets: BTreeSet<_> = moves.iter().map(|step| step.to).collect();
                assert!(moves.iter().all(|step| !targets.contains(&step.from)));
            }
            for step in moves {
                self.store[step.to as usize] = self.store[step.from as usize];
            }
            self.model.accept(trunk, &nodes);
        }
        may
    }

    fn merge(&mut self, node: usize) -> bool {
        let chain = self.model.only_children(node);
        let drafts = |&node: &usize| self.model.is_draft(node) || self.model.is_drafted(node);
        let is_draft = drafts(&node) || chain.iter().any(drafts);
        let may = !is_draft;
        let moves = self.forest.merge_chain(self.model.nodes[node].key);
        assert_eq!(moves.is_ok(), may, "{moves:?}");
        for step in moves.unwrap_or_default() {
            self.store[step.to as usize] = self.store[step.from as usize];
        }
        if may {
            self.model.merge(node, &chain);
        }
        may && !chain.is_empty()
    }

    /// Puts a chain of nodes of these lengths below the only node there is, and `split` empty nodes at its end.
    pub(crate) fn lengthen_chain(&mut self, lengths: &[u32], split: usize) {
        let mut last = 0;
        for &length in lengths {
            let child = self.forest.fork(self.model.nodes[last].key, 1).unwrap()[0];
            self.model.nodes[last].sealed = true;
            last = self.model.insert(child, Some(last));
            if length > 0 {
                self.forest.append(child, length).unwrap();
                self.model.grow(last, length);
                self.write(last, 0);
            }
        }
        if split > 0 {
            let children = self.forest.fork(self.model.nodes[last].key, split).unwrap();
            self.model.nodes[last].sealed = true;
            for child in children {
                self.model.insert(child, Some(last));
            }
        }
    }

    /// Merges the chain that begins with the first root.
    pub(crate) fn merge_from_the_top(&mut self) {
        self.merge(0);
    }

    fn prune(&mut self, pick: Pick, whole_tree: bool) -> bool {
        let Some(node) = self.pick(pick) else {
            return false;
        };
        let free = self.free_pages();
        let key = self.model.nodes[node].key;
        let freed = if whole_tree { self.forest.remove_tree(key) } else { self.forest.prune(key) };
        self.model.prune(if whole_tree { self.model.root(node) } else { node });
        assert_eq!(freed.unwrap() as usize, self.free_pages() - free);
        assert_eq!(self.forest.length(key), Err(ForestError::UnknownNode { node: key }));
        true
    }

    /// Gives all free pages to a tree of its own.
    pub(crate) fn fill_pool(&mut self) {
        self.root((self.free_pages() * PAGE) as u32);
    }

    /// Writes the tokens of `node` from `begin` on to where the forest says.
    fn write(&mut self, node: usize, begin: usize) {
        let node = &self.model.nodes[node];
        let mut targets = Vec::new();
        let range = begin as u32..node.tokens.len() as u32;
        self.forest.append_targets(node.key, range, &mut targets).unwrap();
        for (target, token) in targets.iter().zip(&node.tokens[begin..]) {
            self.store[*target as usize] = *token;
        }
    }
}
