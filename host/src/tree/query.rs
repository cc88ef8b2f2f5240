//! Asking a forest about its nodes.

use super::node::{Content, State};
use super::{ForestError, NodeKey, TokenForest};
use crate::cache::PageId;

impl TokenForest {
    /// Number of nodes, of all trees, drafts included.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Roots of all trees, in no particular order.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = NodeKey> + '_ {
        self.trees.values().map(|tree| tree.root)
    }

    /// The key that names here the node that `key` names in another forest to which the same has been done: on another
    /// device, say, that has the same trees. A forest's own keys stay as they are.
    pub fn same_node(&self, key: NodeKey) -> NodeKey {
        self.nodes.same(key)
    }

    /// The node's own tokens.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn length(&self, node: NodeKey) -> Result<u32, ForestError> {
        Ok(self.lengths[self.node(node)?.slot as usize])
    }

    /// Tokens that a query at the node sees: its own and all its ancestors'. The position of the next
    /// token, for a rotary embedding.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn context_length(&self, node: NodeKey) -> Result<u64, ForestError> {
        let mut tokens = 0;
        let mut next = Some(node);
        while let Some(key) = next {
            let record = self.node(key)?;
            tokens += u64::from(self.lengths[record.slot as usize]);
            if let Content::Draft { above, .. } = record.content {
                return Ok(tokens + u64::from(above));
            }
            next = record.parent;
        }
        Ok(tokens)
    }

    /// As [`TokenForest::context_length`], of a node that is there; as many as 32 bits hold.
    pub(super) fn path_tokens(&self, node: NodeKey) -> u32 {
        let tokens = self.context_length(node).expect("the node was checked");
        tokens.min(u64::from(u32::MAX)) as u32
    }

    /// The node that carries the draft which `node` is of; `None` for a node of no draft.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn trunk(&self, node: NodeKey) -> Result<Option<NodeKey>, ForestError> {
        Ok(match self.node(node)?.content {
            Content::Draft { block, .. } => Some(self.blocks[block].trunk),
            Content::Owned { .. } => None,
        })
    }

    /// The node's index into [`TokenForest::lengths`] and [`TokenForest::tail_pages`].
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn length_slot(&self, node: NodeKey) -> Result<u32, ForestError> {
        Ok(self.node(node)?.slot)
    }

    /// The node's parent; `None` for a root.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn parent(&self, node: NodeKey) -> Result<Option<NodeKey>, ForestError> {
        Ok(self.node(node)?.parent)
    }

    /// The node's children, oldest first.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn children(
        &self,
        node: NodeKey,
    ) -> Result<impl Iterator<Item = NodeKey> + '_, ForestError> {
        let first = self.node(node)?.first_child;
        Ok(std::iter::successors(first, |&child| self.nodes[child].next))
    }

    /// All nodes but those of drafts, parents before their children.
    pub(crate) fn subtrees(&self) -> impl Iterator<Item = NodeKey> + '_ {
        let below = move |root| {
            std::iter::successors(Some(root), move |&key| self.next_in_subtree(key, root))
        };
        let owned = |key: &NodeKey| matches!(self.nodes[*key].content, Content::Owned { .. });
        self.roots().flat_map(below).filter(owned)
    }

    /// Leaves at or below `node`, depth first, oldest child first; draft leaves too.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn leaves(&self, node: NodeKey) -> Result<Vec<NodeKey>, ForestError> {
        self.node(node)?;
        let subtree = std::iter::successors(Some(node), |&key| self.next_in_subtree(key, node));
        let leaves = subtree.filter(|&key| self.nodes[key].first_child.is_none());
        Ok(leaves.collect())
    }

    /// Pages that the node owns; token `t` is in page `t / 64`, at `t % 64`. Empty for a draft node, whose
    /// pages are its block's; [`NONE`](kernels_gpu::abi::NONE) where tokens are compacted.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn pages(&self, node: NodeKey) -> Result<&[PageId], ForestError> {
        Ok(self.node(node)?.pages())
    }

    /// Whether the node is part of a draft.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn is_draft(&self, node: NodeKey) -> Result<bool, ForestError> {
        Ok(matches!(self.node(node)?.content, Content::Draft { .. }))
    }

    /// Whether tokens can be added to the node: it is no draft's, carries no draft and was never forked.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub(crate) fn grows(&self, node: NodeKey) -> Result<bool, ForestError> {
        self.node(node)?;
        Ok(self.check_growing(node).is_ok())
    }

    /// Whether `node` holds `tokens`, at least 1.
    pub(crate) fn check_held(&self, node: NodeKey, tokens: u32) -> Result<(), ForestError> {
        let length = self.length(node)?;
        if !(1..=length).contains(&tokens) {
            return Err(ForestError::TokenRange { node, begin: 0, end: tokens, length });
        }
        Ok(())
    }

    /// Whether the node has been forked and so will never grow again.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn is_sealed(&self, node: NodeKey) -> Result<bool, ForestError> {
        Ok(matches!(self.node(node)?.content, Content::Owned { state: State::Sealed, .. }))
    }

    /// The node after `node`, depth first, within the subtree of `top`.
    pub(super) fn next_in_subtree(&self, node: NodeKey, top: NodeKey) -> Option<NodeKey> {
        if let Some(child) = self.nodes[node].first_child {
            return Some(child);
        }
        let mut node = node;
        while node != top {
            let record = &self.nodes[node];
            if record.next.is_some() {
                return record.next;
            }
            node = record.parent.expect("only the top has no parent above it");
        }
        None
    }
}
