//! Items that stay within one node, or are one row tile, dealt to shares: DeFT-Node, DeFT-Node-Chunk and, where
//! Flatten has more row tiles than shares, whole tiles.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cost::{Costs, PAGE_GROUPS};
use super::draft::Draft;
use super::sequence::{Sequence, Unit};

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
    dealer.order.clear();
    for unit in &sequence.units {
        for piece in &sequence.pieces[unit.pieces.start as usize..unit.pieces.end as usize] {
            let count = piece.queries.end - piece.queries.start;
            let mut pages = piece.pages.clone();
            let mut groups = piece.groups;
            // As many chunks as it takes, as even as they get.
            let all = pages.end - pages.start;
            let chunk = chunk.map_or(all, |chunk| all.div_ceil(all.div_ceil(chunk).max(1)));
            loop {
                let take = chunk.min(pages.end - pages.start);
                let taken = groups.min(take.saturating_mul(PAGE_GROUPS));
                let ns = costs.item_ns
                    + f64::from(taken) * costs.rates_in(count, piece.reading).of(piece.shared)
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
    dealer.deal(shares, draft);
}

/// One item for every unit, or for its pages of one format that follow one another, dealt likewise. Tiles of one tree cost about the same, so they go to different
/// shares, to be read at the same time.
pub(super) fn deal_units(
    sequence: &Sequence,
    costs: &Costs,
    shares: u32,
    dealer: &mut Dealer,
    draft: &mut Draft,
) {
    dealer.order.clear();
    for unit in &sequence.units {
        let pieces = &sequence.pieces[unit.pieces.start as usize..unit.pieces.end as usize];
        let of_one_format = pieces.chunk_by(|a, b| a.format == b.format);
        let parts = of_one_format.clone().count() as u64;
        let ns = unit_ns(unit, costs);
        for pieces in of_one_format {
            let item = draft.items.len() as u32;
            dealer.order.push((Reverse((ns * 1e3) as u64 / parts), item));
            draft.begin_item(0, pieces[0].queries.clone());
            for piece in pieces {
                draft.push_segment(piece, piece.pages.clone());
            }
        }
    }
    dealer.deal(shares, draft);
}

/// Cost of a unit as one item.
pub(super) fn unit_ns(unit: &Unit, costs: &Costs) -> f64 {
    let rates = costs.rates(unit.queries.end - unit.queries.start);
    costs.item_ns + rates.cost(unit.groups)
}

impl Dealer {
    /// Gives every item of `draft` its share.
    fn deal(&mut self, shares: u32, draft: &mut Draft) {
        self.order.sort_unstable();
        self.heap.clear();
        self.heap.extend((0..shares).map(|share| Reverse((0, share))));
        for &(Reverse(cost), item) in &self.order {
            if let Some(mut least) = self.heap.peek_mut() {
                let Reverse((load, share)) = *least;
                draft.items[item as usize].share = share;
                *least = Reverse((load + cost, share));
            }
        }
    }
}
