//! Items that stay within one node, dealt to shares: DeFT-Node and DeFT-Node-Chunk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cost::{Costs, PAGE_GROUPS};
use super::draft::Draft;
use super::sequence::Sequence;

/// Scratch of [`deal`].
#[derive(Debug, Default)]
pub(super) struct Dealer {
    /// Items by cost in picoseconds, costliest first.
    order: Vec<(Reverse<u64>, u32)>,
    /// Shares by cost so far in picoseconds, cheapest on top.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

/// One item for every `chunk` pages of every piece (all of them for `None`), each dealt to the share
/// that has least to do, the costliest first (longest processing time, Graham 1969).
pub(super) fn deal(
    sequence: &Sequence,
    costs: &Costs,
    chunk: Option<u32>,
    shares: u32,
    dealer: &mut Dealer,
    draft: &mut Draft,
) {
    draft.clear(shares);
    dealer.order.clear();
    for unit in &sequence.units {
        for piece in &sequence.pieces[unit.pieces.start as usize..unit.pieces.end as usize] {
            let count = piece.queries.end - piece.queries.start;
            let mut pages = piece.pages.clone();
            let mut groups = piece.groups;
            loop {
                let left = pages.end - pages.start;
                let take = chunk.map_or(left, |chunk| chunk.min(left));
                let taken = groups.min(take.saturating_mul(PAGE_GROUPS));
                let ns = costs.item_ns
                    + f64::from(taken) * costs.rates(count).of(piece.shared)
                    + f64::from(count) * costs.slot_ns;
                let item = draft.items.len() as u32;
                dealer.order.push((Reverse((ns * 1e3) as u64), item));
                draft.begin_item(0, piece.queries.clone());
                draft.push_segment(piece, pages.start..pages.start + take);
                pages.start += take;
                groups -= taken;
                if pages.is_empty() {
                    break;
                }
            }
        }
    }
    dealer.order.sort_unstable();
    dealer.heap.clear();
    dealer
        .heap
        .extend((0..shares).map(|share| Reverse((0, share))));
    for &(Reverse(cost), item) in &dealer.order {
        if let Some(mut least) = dealer.heap.peek_mut() {
            let Reverse((load, share)) = *least;
            draft.items[item as usize].share = share;
            draft.share_ns[share as usize] = (load + cost) as f64 * 1e-3;
            *least = Reverse((load + cost, share));
        }
    }
}
