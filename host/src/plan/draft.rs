//! A plan before it is encoded: items and segments in merge order.

use std::ops::Range;

use super::sequence::Piece;

/// Some pages of a run, as one item's segment.
#[derive(Clone, Debug)]
pub(super) struct DraftSegment {
    pub(super) run: u32,
    /// Pages, counted within the run.
    pub(super) pages: Range<u32>,
    /// Queries that see them, counted over the whole plan.
    pub(super) queries: Range<u32>,
    /// Priced as pages that several row tiles read while the cache has them.
    pub(super) shared: bool,
}

/// A work item and its share.
#[derive(Clone, Debug)]
pub(super) struct DraftItem {
    pub(super) share: u32,
    /// Union of the segments' queries.
    pub(super) queries: Range<u32>,
    pub(super) segments: Range<u32>,
    /// First partial slot, or `NONE`; set by [`super::merge`].
    pub(super) partial_slot: u32,
}

/// Items in the order in which their partial results are merged: depth first, root to leaf.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) items: Vec<DraftItem>,
    pub(super) segments: Vec<DraftSegment>,
    /// Cost of each share, in nanoseconds by the cost model.
    pub(super) share_ns: Vec<f64>,
}

impl Draft {
    pub(super) fn clear(&mut self, shares: u32) {
        self.items.clear();
        self.segments.clear();
        self.share_ns.clear();
        self.share_ns.resize(shares as usize, 0.0);
    }

    /// Begins an item of `share`; it is empty until a segment is pushed.
    pub(super) fn begin_item(&mut self, share: u32, queries: Range<u32>) {
        let at = self.segments.len() as u32;
        self.items.push(DraftItem {
            share,
            queries,
            segments: at..at,
            partial_slot: kernels_gpu::abi::NONE,
        });
    }

    /// Adds `pages` of `piece` to the item begun last.
    pub(super) fn push_segment(&mut self, piece: &Piece, pages: Range<u32>) {
        self.segments.push(DraftSegment {
            run: piece.run,
            pages,
            queries: piece.queries.clone(),
            shared: piece.shared,
        });
        if let Some(item) = self.items.last_mut() {
            item.queries.start = item.queries.start.min(piece.queries.start);
            item.queries.end = item.queries.end.max(piece.queries.end);
            item.segments.end = self.segments.len() as u32;
        }
    }
}
