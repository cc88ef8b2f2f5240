//! Taking nodes out of a forest.

use kernels_gpu::abi::{NONE, PAGE_TOKENS};

use super::node::{Content, State};
use super::{ForestError, NodeKey, TokenForest};

impl TokenForest {
    /// Removes `node` and all below it; returns the number of pages that are free again.
    ///
    /// The parent of a forked child stays sealed; when the last node of a draft goes, the node that
    /// carried it grows again.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn prune(&mut self, node: NodeKey) -> Result<u32, ForestError> {
        self.node(node)?;
        let free = self.pool.free();
        self.remove_subtree(node);
        self.changes.reshaped();
        Ok(self.pool.free() - free)
    }

    /// Removes the whole tree that `node` is of; returns the number of pages that are free again.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn remove_tree(&mut self, node: NodeKey) -> Result<u32, ForestError> {
        let tree = self.node(node)?.tree;
        self.prune(self.trees[tree].root)
    }

    pub(super) fn remove_subtree(&mut self, top: NodeKey) {
        let subtree: Vec<_> =
            std::iter::successors(Some(top), |&key| self.next_in_subtree(key, top)).collect();
        self.unlink(top);
        for key in subtree {
            self.release_node(key);
        }
    }

    pub(super) fn unlink(&mut self, node: NodeKey) {
        let (parent, previous, next) = {
            let record = &self.nodes[node];
            (record.parent, record.previous, record.next)
        };
        if let Some(previous) = previous {
            self.nodes[previous].next = next;
        }
        if let Some(next) = next {
            self.nodes[next].previous = previous;
        }
        let Some(parent) = parent else {
            self.trees.remove(self.nodes[node].tree);
            return;
        };
        let parent = &mut self.nodes[parent];
        if previous.is_none() {
            parent.first_child = next;
        }
        if next.is_none() {
            parent.last_child = previous;
        }
    }

    /// Gives back an unlinked node's slot and references.
    pub(super) fn release_node(&mut self, key: NodeKey) {
        let node = self.nodes.remove(key).expect("the node is of the subtree");
        let slot = node.slot as usize;
        let length = std::mem::take(&mut self.lengths[slot]);
        self.tail_pages[slot] = NONE;
        self.free_slots.push(node.slot);
        match node.content {
            Content::Owned { pages, .. } => {
                self.release_pages(pages, node.coded);
                node.compacted.iter().for_each(|compacted| self.release_compacted(compacted));
            }
            Content::Draft { block, begin, .. } => {
                let record = &mut self.blocks[block];
                for index in begin / PAGE_TOKENS..(begin + length).div_ceil(PAGE_TOKENS) {
                    let page = &mut record.pages[index as usize];
                    if self.pool.release(*page) {
                        *page = NONE;
                    }
                }
                record.held -= length;
                record.nodes -= 1;
                if record.nodes == 0 {
                    let trunk = record.trunk;
                    self.blocks.remove(block);
                    self.set_state(trunk, State::Growing);
                }
            }
        }
    }
}
