//! Merging chains of nodes.
//!
//! Every fork starts pages of its own, so a method that forks and prunes at almost every token, as beam
//! search does, would hold a page for almost every token. A chain of nodes without side branches is one node
//! in all but storage, and becomes one: its tokens move up within the pages that it has.

use deft::NodeKey;
use deft::abi::PAGE_TOKENS;

use super::{BranchId, Event, SearchError, SearchTree};

/// Pages that a merge has to save while there are enough. More means fewer merges and more pages held.
pub(super) const SAVED_PAGES: u32 = 8;

/// Nodes one below the other, each the only child of the one before; none but the last is a branch.
struct Chain {
    top: NodeKey,
    nodes: usize,
    tokens: u32,
    pages: u32,
}

impl SearchTree<'_> {
    /// Merges the chain that ends in `id` if that saves `saved` pages. A held branch may have children: it stays.
    pub(super) fn compact(&mut self, id: BranchId, saved: u32) -> Result<(), SearchError> {
        let branch = self.branch(id)?;
        let (node, held) = (branch.node, branch.held);
        if !held && !self.is_root(node) {
            let chain = self.chain(node)?;
            self.merge(id, node, &chain, saved)?;
        }
        Ok(())
    }

    /// Merges every chain of the tree that would give back a page.
    pub(super) fn compact_all(&mut self) -> Result<(), SearchError> {
        let ids: Vec<BranchId> = self.branches.keys().copied().collect();
        for id in ids {
            let mut next = Some(self.branch(id)?.node);
            while let Some(node) = next.filter(|&node| !self.is_root(node)) {
                let chain = self.chain(node)?;
                next = self.parent(chain.top)?;
                // A chain that goes on below `node` would take in a branch.
                if self.children(node)? != 1 {
                    self.merge(id, node, &chain, 1)?;
                }
            }
        }
        Ok(())
    }

    /// Merges the chain that ends in `last`, on the path to `id`, if that saves `saved` pages.
    fn merge(
        &mut self,
        id: BranchId,
        last: NodeKey,
        chain: &Chain,
        saved: u32,
    ) -> Result<(), SearchError> {
        if chain.pages < chain.tokens.div_ceil(PAGE_TOKENS) + saved {
            return Ok(());
        }
        let length = self.model.forest().length(chain.top);
        let kept = self.forest_result(length)?;
        self.model.merge_chain(chain.top)?;
        for branch in self.branches.values_mut() {
            if branch.node == last {
                branch.node = chain.top;
            }
        }
        self.stats.moved += u64::from(chain.tokens - kept);
        self.emit(&Event::Compacted {
            branch: id,
            nodes: chain.nodes,
            tokens: chain.tokens as usize,
        });
        Ok(())
    }

    /// Whether the node has a row of K and V for each token: only such nodes are merged.
    fn is_whole(&self, node: NodeKey) -> Result<bool, SearchError> {
        let compacted = self.model.forest().compacted_tokens(node);
        Ok(self.forest_result(compacted)? == 0)
    }

    /// The chain that ends in `last`.
    fn chain(&self, last: NodeKey) -> Result<Chain, SearchError> {
        let mut chain = Chain { top: last, nodes: 0, tokens: 0, pages: 0 };
        let mut node = last;
        loop {
            let length = self.model.forest().length(node);
            let tokens = self.forest_result(length)?;
            chain.top = node;
            chain.nodes += 1;
            chain.tokens += tokens;
            chain.pages += tokens.div_ceil(PAGE_TOKENS);
            match self.parent(node)? {
                Some(parent)
                    if !self.is_root(parent)
                        && self.children(parent)? == 1
                        && !self.is_branch(parent)
                        && self.is_whole(node)?
                        && self.is_whole(parent)? =>
                {
                    node = parent;
                }
                _ => return Ok(chain),
            }
        }
    }
}
