//! Nodes cut in two between pages, and leaves that join another parent.

use kernels_gpu::abi::PAGE_TOKENS;

use super::node::{Content, Node, State, TreeKey};
use super::seal::Coded;
use super::{ForestError, NodeKey, TokenForest};

impl TokenForest {
    /// Whether `count` more nodes can be made.
    ///
    /// # Errors
    /// [`ForestError::TooManyNodes`].
    pub(crate) fn check_nodes(&self, count: usize) -> Result<(), ForestError> {
        self.check_room(count)
    }

    /// Cuts `node` in two before its token `tokens`, a multiple of 64 within the node. Nothing is copied: a new node
    /// between `node` and its parent takes the pages before the cut, and `node` keeps its key, the other pages, its
    /// children and its state. Pages of a format stay in it, on both sides. Returns the new node, which is sealed.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Draft`], [`ForestError::TooManyNodes`], or
    /// [`ForestError::TokenRange`] unless `0 < tokens < length`.
    ///
    /// # Panics
    /// If `tokens` is not a multiple of 64.
    pub(crate) fn split(&mut self, node: NodeKey, tokens: u32) -> Result<NodeKey, ForestError> {
        assert!(tokens.is_multiple_of(PAGE_TOKENS), "a cut within a page");
        let length = self.length(node)?;
        if self.is_draft(node)? {
            return Err(ForestError::Draft { node });
        }
        self.check_whole(node)?;
        if !(1..length).contains(&tokens) {
            return Err(ForestError::TokenRange { node, begin: 0, end: tokens, length });
        }
        self.check_room(1)?;
        let tree = self.nodes[node].tree;
        let upper = self.create_node(tree, None, Content::sealed());
        let (pages, coded) = self.take_front(node, tokens);
        let record = &mut self.nodes[upper];
        record.coded = coded;
        if let Content::Owned { pages: own, .. } = &mut record.content {
            *own = pages;
        }
        let slot = record.slot as usize;
        self.lengths[slot] = tokens;
        self.tail_pages[slot] = record.tail_page();
        self.put_between(upper, node);
        self.changes.reshaped();
        Ok(upper)
    }

    /// Moves `leaf`, a node without children, below `parent` as its last child, and drops its first `tokens` tokens, a
    /// multiple of 64 and fewer than it has: `parent`'s path ends with the same ones. `parent` has to be sealed.
    pub(crate) fn graft(&mut self, leaf: NodeKey, parent: NodeKey, tokens: u32) {
        debug_assert!(self.nodes[leaf].first_child.is_none() && leaf != parent);
        let (pages, coded) = self.take_front(leaf, tokens);
        self.release_pages(pages, coded);
        self.unlink(leaf);
        let tree = self.nodes[parent].tree;
        let previous = self.nodes[parent].last_child;
        let record = &mut self.nodes[leaf];
        record.tree = tree;
        (record.parent, record.previous, record.next) = (Some(parent), previous, None);
        if let Some(previous) = previous {
            self.nodes[previous].next = Some(leaf);
        }
        let parent = &mut self.nodes[parent];
        parent.first_child.get_or_insert(leaf);
        parent.last_child = Some(leaf);
        self.changes.reshaped();
    }

    /// Takes the pages of the first `tokens` tokens, a multiple of 64 and fewer than all, away from `node`; with those of
    /// them that are not native.
    fn take_front(&mut self, node: NodeKey, tokens: u32) -> (Vec<u32>, Option<Coded>) {
        let count = tokens / PAGE_TOKENS;
        let record = &mut self.nodes[node];
        self.lengths[record.slot as usize] -= tokens;
        let coded = record.take_coded(count);
        let Content::Owned { pages, .. } = &mut record.content else {
            unreachable!("a draft node is not cut");
        };
        (pages.drain(..count as usize).collect(), coded)
    }

    /// Links the new node `upper` in the place of `node`, and `node` below it.
    fn put_between(&mut self, upper: NodeKey, node: NodeKey) {
        let Node { parent, previous, next, tree, .. } = self.nodes[node];
        let record = &mut self.nodes[upper];
        (record.parent, record.previous, record.next) = (parent, previous, next);
        (record.first_child, record.last_child) = (Some(node), Some(node));
        for (beside, forward) in [(previous, true), (next, false)] {
            match beside {
                Some(beside) if forward => self.nodes[beside].next = Some(upper),
                Some(beside) => self.nodes[beside].previous = Some(upper),
                None => self.link_end(parent, tree, upper, forward),
            }
        }
        let record = &mut self.nodes[node];
        (record.parent, record.previous, record.next) = (Some(upper), None, None);
    }

    /// Makes `node` the first or the last child of `parent`, or the tree's root.
    fn link_end(&mut self, parent: Option<NodeKey>, tree: TreeKey, node: NodeKey, first: bool) {
        match parent {
            None => self.trees[tree].root = node,
            Some(parent) if first => self.nodes[parent].first_child = Some(node),
            Some(parent) => self.nodes[parent].last_child = Some(node),
        }
    }
}

impl Content {
    fn sealed() -> Self {
        Self::Owned { pages: Vec::new(), state: State::Sealed }
    }
}
