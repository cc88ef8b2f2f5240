//! Keeping a tree's pages where they are while a plan reads them.

use std::sync::Arc;

use super::{ForestError, NodeKey, TokenForest, node::TreeKey};

/// Holds trees: while it or a clone of it lives, nothing of them is pruned and no draft is accepted.
///
/// Growing, forking and drafting go on, for they leave what a plan reads where it is.
#[must_use = "the trees are free again as soon as the lease is dropped"]
#[derive(Clone, Debug)]
pub struct TreeLease {
    #[expect(dead_code, reason = "held for its reference counts")]
    trees: Box<[Arc<()>]>,
}

impl TokenForest {
    /// Leases the trees of `nodes`.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], or [`ForestError::Empty`] for an empty slice.
    pub fn lease(&self, nodes: &[NodeKey]) -> Result<TreeLease, ForestError> {
        if nodes.is_empty() {
            return Err(ForestError::Empty { argument: "nodes" });
        }
        let mut trees = Vec::with_capacity(nodes.len());
        for &node in nodes {
            let tree = self.node(node)?.tree;
            if trees.last() != Some(&tree) {
                trees.push(tree);
            }
        }
        trees.sort_unstable();
        trees.dedup();
        let trees = trees.iter().map(|&tree| self.trees[tree].lease.clone());
        Ok(TreeLease {
            trees: trees.collect(),
        })
    }

    /// Whether a lease of the node's tree is out.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn is_leased(&self, node: NodeKey) -> Result<bool, ForestError> {
        let tree = self.node(node)?.tree;
        Ok(Arc::strong_count(&self.trees[tree].lease) > 1)
    }

    pub(super) fn check_not_leased(
        &mut self,
        tree: TreeKey,
        node: NodeKey,
    ) -> Result<(), ForestError> {
        let lease = &mut self.trees[tree].lease;
        // `get_mut` also synchronises with the thread that dropped the last lease, as a count does not.
        if Arc::get_mut(lease).is_some() {
            return Ok(());
        }
        let leases = Arc::strong_count(lease) - 1;
        Err(ForestError::Leased { node, leases })
    }
}
