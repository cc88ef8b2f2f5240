//! Keeping a plan when nodes grow over a page's edge.

use std::ops::Range;

use kernels_gpu::abi::{NONE, Segment, words_of};

use super::Plan;
use super::program::LiveTail;
use crate::tree::Growth;

/// What [`Plan::patch`] did.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// The plan now reads the new pages.
    Patched,
    /// There is no room left for a page: plan anew. The plan is as it was.
    Stale,
}

/// What [`TreeCache::advance`](crate::TreeCache::advance) or [`PagedPlan::update`](super::PagedPlan::update) had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanUpdate {
    /// Nothing: no page was added.
    Unchanged,
    /// New pages were entered into the plan.
    Patched,
    /// The plan was made anew.
    Replanned,
}

/// Word of a [`Segment`] that holds its `page_count`.
const PAGE_COUNT_WORD: u32 = (std::mem::offset_of!(Segment, page_count) / 4) as u32;

impl Plan {
    /// Adds `growth` (the entries since the plan was made or last patched, oldest first) in time
    /// proportional to its length; entries of nodes that the plan does not read are passed over.
    ///
    /// Then every query sees what a plan from scratch would show it; only the split into shares is
    /// that of before. `dirty` is overwritten with the ranges of [`Plan::words`] that changed,
    /// at most one a share: what has to be copied to a device that holds the plan.
    pub fn patch(&mut self, growth: &[Growth], dirty: &mut Vec<Range<u32>>) -> Patch {
        dirty.clear();
        for (i, entry) in growth.iter().enumerate() {
            let tails = tails(&self.live, entry.length_slot);
            let full = tails
                .iter()
                .position(|tail| !push_page(&mut self.words, self.stride, tail, entry.page, dirty));
            if let Some(done) = full {
                for tail in &tails[..done] {
                    pop_page(&mut self.words, self.stride, tail);
                }
                for entry in growth[..i].iter().rev() {
                    for tail in self::tails(&self.live, entry.length_slot) {
                        pop_page(&mut self.words, self.stride, tail);
                    }
                }
                dirty.clear();
                return Patch::Stale;
            }
        }
        merge_by_share(dirty, self.stride);
        let read = growth.iter().filter(|entry| !tails(&self.live, entry.length_slot).is_empty());
        let pages = read.map(|entry| entry.page.saturating_add(1));
        self.bounds.pages = pages.fold(self.bounds.pages, u32::max);
        self.identity.patched(dirty);
        Patch::Patched
    }
}

impl Plan {
    /// Whether one of the nodes that grew is among those that the plan reads.
    pub(crate) fn reads_any(&self, growth: &[Growth]) -> bool {
        let read = |entry: &Growth| !tails(&self.live, entry.length_slot).is_empty();
        growth.iter().any(read)
    }
}

/// The segments that end where the run of `length_slot` grows.
fn tails(live: &[LiveTail], length_slot: u32) -> &[LiveTail] {
    let begin = live.partition_point(|tail| tail.length_slot < length_slot);
    let count = live[begin..].iter().take_while(|tail| tail.length_slot == length_slot).count();
    &live[begin..begin + count]
}

fn segment_mut<'a>(words: &'a mut [u32], tail: &LiveTail) -> &'a mut Segment {
    let begin = tail.segment_word as usize;
    bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(
        &mut words[begin..begin + words_of::<Segment>() as usize],
    ))
}

/// Adds a page to a segment, if it has room and no masks, which would have to grow as well.
fn push_page(
    words: &mut [u32],
    stride: u32,
    tail: &LiveTail,
    page: u32,
    dirty: &mut Vec<Range<u32>>,
) -> bool {
    let segment = segment_mut(words, tail);
    if segment.page_count == segment.page_capacity || segment.mask != NONE {
        return false;
    }
    let share_begin = tail.segment_word / stride * stride;
    let at = share_begin + segment.page_word + segment.page_count;
    segment.page_count += 1;
    words[at as usize] = page;
    dirty.push(tail.segment_word + PAGE_COUNT_WORD..at + 1);
    true
}

fn pop_page(words: &mut [u32], stride: u32, tail: &LiveTail) {
    let segment = segment_mut(words, tail);
    segment.page_count -= 1;
    let at = tail.segment_word / stride * stride + segment.page_word + segment.page_count;
    words[at as usize] = 0;
}

/// Makes one range of all that lie in the same share.
fn merge_by_share(dirty: &mut Vec<Range<u32>>, stride: u32) {
    let share = |range: &Range<u32>| range.start / stride;
    if !dirty.is_sorted_by_key(share) {
        dirty.sort_unstable_by_key(share);
    }
    dirty.dedup_by(|later, kept| {
        let same = share(later) == share(kept);
        if same {
            *kept = kept.start.min(later.start)..kept.end.max(later.end);
        }
        same
    });
}
