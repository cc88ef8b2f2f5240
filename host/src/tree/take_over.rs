//! Pages that go from one node to another.

use super::node::Content;
use super::{ForestError, NodeKey, TokenForest};

impl TokenForest {
    /// Gives `leaf` the pages of `tail` behind as many as it has itself, and with them `tail`'s length; the others return,
    /// and `tail` is gone. Both grow, `tail` is a root without children, and the pages that `leaf` has are full or
    /// all that `tail` has too.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub(crate) fn take_over(&mut self, leaf: NodeKey, tail: NodeKey) -> Result<(), ForestError> {
        let (length, held) = (self.length(tail)?, self.node(leaf)?.pages().len());
        let Content::Owned { pages, .. } = &mut self.nodes[tail].content else {
            return Err(ForestError::Draft { node: tail });
        };
        let taken: Vec<_> = pages.drain(held.min(pages.len())..).collect();
        let record = &mut self.nodes[leaf];
        let slot = record.slot as usize;
        if let Content::Owned { pages, .. } = &mut record.content {
            pages.extend(taken);
        }
        self.lengths[slot] = length;
        self.tail_pages[slot] = record.tail_page();
        self.remove_subtree(tail);
        self.changes.reshaped();
        Ok(())
    }
}
