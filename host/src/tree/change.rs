//! What has changed since a plan was made.

use super::TokenForest;
use crate::cache::PageId;

/// A page that a node has grown into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The node's length counter.
    pub length_slot: u32,
    /// The page, right after those that the node had.
    pub page: PageId,
}

/// A point in a forest's history: take one with the view that a plan is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowthCursor {
    forest: u64,
    shape_epoch: u64,
    position: usize,
}

/// Page growth between two changes of shape. It has no more entries than the pool has pages, for pages
/// return only when the shape changes.
#[derive(Clone, Debug)]
pub(super) struct ChangeLog {
    /// The forest's number: no other has it.
    forest: u64,
    shape_epoch: u64,
    growth: Vec<Growth>,
}

impl ChangeLog {
    pub(super) fn new(forest: u64) -> Self {
        Self { forest, shape_epoch: 0, growth: Vec::new() }
    }

    pub(super) fn reshaped(&mut self) {
        self.shape_epoch += 1;
        self.growth.clear();
    }

    pub(super) fn grew(&mut self, length_slot: u32, page: PageId) {
        self.growth.push(Growth { length_slot, page });
    }

    /// Forgets growth that was undone, of the same shape.
    pub(super) fn forget_since(&mut self, before: GrowthCursor) {
        debug_assert_eq!(before.shape_epoch, self.shape_epoch);
        self.growth.truncate(before.position);
    }

    pub(super) fn entries(&self) -> usize {
        self.growth.len()
    }
}

impl TokenForest {
    /// Counts changes of shape: every insertion, fork, prune, accept and merge, and a
    /// shrinking that gives pages back. A view of the same nodes taken
    /// in the same epoch differs in lengths and added pages only.
    pub fn shape_epoch(&self) -> u64 {
        self.changes.shape_epoch
    }

    /// Now, for a later [`TokenForest::growth_since`].
    pub fn growth_cursor(&self) -> GrowthCursor {
        GrowthCursor {
            forest: self.changes.forest,
            shape_epoch: self.changes.shape_epoch,
            position: self.changes.growth.len(),
        }
    }

    /// Pages that nodes have grown into since `cursor`, oldest first; `None` if the shape has changed
    /// since, or the cursor is of another forest, so that a plan from then has to be made anew.
    ///
    /// The slice covers nodes of all trees, those a plan does not read included; their slots are of no
    /// node that it does. It is empty while growth stays within pages: then
    /// [`TokenForest::lengths`] is all that has changed. Once the entries are taken, go on from a new
    /// [`TokenForest::growth_cursor`].
    pub fn growth_since(&self, cursor: GrowthCursor) -> Option<&[Growth]> {
        let ours = (self.changes.forest, self.changes.shape_epoch);
        if (cursor.forest, cursor.shape_epoch) != ours {
            return None;
        }
        self.changes.growth.get(cursor.position..)
    }
}
