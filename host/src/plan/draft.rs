//! A plan before it is encoded: items and segments in merge order.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;

use super::sequence::Piece;
use crate::format::KvFormat;
use crate::tree::{Run, TreeView};

/// Most pages of a segment: a page's place is 16 bits to the kernels, and growth adds some.
const MAX_PAGES: u32 = 1 << 15;

/// Some pages of a run, as one item's segment.
#[derive(Clone, Debug)]
pub(super) struct DraftSegment {
    pub(super) run: u32,
    /// Pages, counted within the run.
    pub(super) pages: Range<u32>,
    /// Queries that see them, counted over the whole plan.
    pub(super) queries: Range<u32>,
    /// Pages of the runs after it that the same queries see whole, and their tokens: see [`Draft::join_pages`].
    pub(super) joined: Joined,
    /// Priced as pages that several row tiles read while the cache has them.
    pub(super) shared: bool,
}

/// What follows a segment's own pages in the view.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Joined {
    pub(super) pages: u32,
    pub(super) tokens: u32,
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
    pub(super) fn push_segment(&mut self, piece: &Piece, mut pages: Range<u32>) {
        while pages.end - pages.start > MAX_PAGES {
            let rest = pages.start + MAX_PAGES;
            self.push_pages(piece, pages.start..rest);
            pages.start = rest;
        }
        self.push_pages(piece, pages);
        if let Some(item) = self.items.last_mut() {
            item.queries.start = item.queries.start.min(piece.queries.start);
            item.queries.end = item.queries.end.max(piece.queries.end);
            item.segments.end = self.segments.len() as u32;
        }
    }

    fn push_pages(&mut self, piece: &Piece, pages: Range<u32>) {
        let count = pages.end - pages.start;
        // A run after the piece's first is a page.
        let (run, first, own) = match pages.start.checked_sub(piece.own_pages) {
            Some(after) if count > 0 => (piece.run + 1 + after, 0, 1),
            _ => (piece.run, pages.start, count.min(piece.own_pages - pages.start)),
        };
        let missing = if pages.end == piece.last_page { piece.missing } else { 0 };
        let joined = count - own;
        self.segments.push(DraftSegment {
            run,
            pages: first..first + own,
            queries: piece.queries.clone(),
            joined: Joined {
                pages: joined,
                tokens: (joined * PAGE_TOKENS).saturating_sub(missing),
            },
            shared: piece.shared,
        });
    }

    /// Moves items to further shares where one has more segments than a program may; whether any had. An item that
    /// has more by itself stays as it is.
    pub(super) fn split_programs(&mut self, most: u32) -> bool {
        let shares = self.share_ns.len();
        // By share, where its next item goes, and the segments there.
        let mut places: Vec<(u32, u32)> = (0..shares as u32).map(|share| (share, 0)).collect();
        for item in &mut self.items {
            let (share, segments) = &mut places[item.share as usize];
            let more = item.segments.end - item.segments.start;
            if *segments > 0 && *segments + more > most {
                (*share, *segments) = (self.share_ns.len() as u32, 0);
                self.share_ns.push(0.0);
            }
            *segments += more;
            item.share = *share;
        }
        self.share_ns.len() > shares
    }

    /// Makes one segment of those that follow one another in an item and in the view, where the same queries see all
    /// of their tokens. A chunk of new tokens is a chain of runs of a page each; to the row tiles after it they are
    /// one run.
    pub(super) fn join_pages(&mut self, view: &TreeView) {
        let mut kept = 0;
        for item in &mut self.items {
            let segments = item.segments.start as usize..item.segments.end as usize;
            let begin = kept;
            for at in segments {
                let segment = self.segments[at].clone();
                if kept > begin && self.segments[kept - 1].takes(&segment, view) {
                    let run = &view.runs[segment.run as usize];
                    let joined = &mut self.segments[kept - 1].joined;
                    let more = segment.joined;
                    joined.pages += segment.pages.end - segment.pages.start + more.pages;
                    joined.tokens += run.tokens - segment.pages.start * PAGE_TOKENS + more.tokens;
                } else {
                    self.segments[kept] = segment;
                    kept += 1;
                }
            }
            item.segments = begin as u32..kept as u32;
        }
        self.segments.truncate(kept);
    }
}

impl DraftSegment {
    /// Whether `next` is more of the same.
    fn takes(&self, next: &Self, view: &TreeView) -> bool {
        let [run, after] = [self, next].map(|segment| &view.runs[segment.run as usize]);
        let whole = |run: &Run, segment: &Self| {
            run.mask.is_none()
                && run.length_slot.is_none()
                && run.causal_tokens(&segment.queries).is_none()
        };
        let end = run.pages.start + self.pages.end + self.joined.pages;
        let own = self.pages.end * PAGE_TOKENS;
        let pages = self.joined.pages + next.joined.pages + next.pages.end - next.pages.start;
        self.queries == next.queries
            && self.pages.end - self.pages.start + pages <= MAX_PAGES
            && run.format == after.format
            // Where the rows of a compacted node end differs by head.
            && run.format != KvFormat::Compacted
            && whole(run, self)
            && whole(after, next)
            && end == after.pages.start + next.pages.start
            && next.pages.end == after.pages.end - after.pages.start
            && run.tokens >= own
            && self.joined.tokens == self.joined.pages * PAGE_TOKENS
    }
}
