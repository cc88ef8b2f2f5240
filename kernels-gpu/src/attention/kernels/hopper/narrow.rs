//! Up to 16 rows: `mma.sync`. The two warpgroups take turns at pages, the four warps of one share a
//! page's tokens, each with a running softmax of its own; the eight partial results meet at the end.

use super::Source;
use super::page_tail;
use super::ring::Ring;
use crate::attention::kernels::block::Work;
use crate::attention::kernels::finish::{Exchange, join};
use crate::attention::kernels::format::Format;
use crate::attention::kernels::rows::{Logits, add_biases, hide, soft_cap};
use crate::attention::kernels::warp_tile::WarpTile;
use crate::attention::tile::{CONSUMER_WARPS, hopper::Tile};
use device::warp::FULL_MASK;
use device::{Element, bulk, warp};

/// Processes all pages of an item. `KS = D / 16`, `NT = D / 8`.
#[inline(always)]
pub(super) unsafe fn run<
    E: Element,
    F: Format,
    C: Source,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const S: u32,
>(
    work: &Work,
    ring: &mut Ring<D, S>,
) {
    let block = work.block;
    // SAFETY: the query tile is loaded.
    let mut tile =
        unsafe { WarpTile::<KS, NT>::new::<D>(block.shared.offset(Tile::<D>::QUERY).cast()) };
    let mut mine = block.warp < 4;
    let mut left = work.pages;
    while left > 0 {
        // SAFETY: a stage is read between its arrival and its release.
        unsafe {
            if mine {
                step::<E, F, C, D, KS, NT, S>(&mut tile, work, ring);
            } else {
                ring.skip();
            }
        }
        mine = !mine;
        left -= 1;
    }
    let exchange = Exchange {
        statistics: block.shared.offset(Tile::<D>::STATISTICS).cast(),
        outputs: block.shared.offset(Tile::<D>::QUERY).cast(),
    };
    // SAFETY: all consumers are through with the item's pages.
    unsafe {
        join::<E, D, KS, NT, { CONSUMER_WARPS as usize }>(tile, block, exchange, &work.sink())
    };
}

/// One page: this warp's 16 tokens.
#[inline(always)]
unsafe fn step<
    E: Element,
    F: Format,
    C: Source,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const S: u32,
>(
    tile: &mut WarpTile<KS, NT>,
    work: &Work,
    ring: &mut Ring<D, S>,
) {
    let lane = work.block.thread % 32;
    let quarter = work.block.warp % 4;
    let own = quarter * 2 * Tile::<D>::GROUP_BYTES;
    // SAFETY: the warp is whole; the page has landed, is not released yet, and its tail is this warp's.
    unsafe {
        ring.wait_full();
        let page = ring.page();
        let tokens = quarter * 16..quarter * 16 + 16;
        if !C::FINITE && warp::warp_vote_any(FULL_MASK, page.tokens != 0) {
            page_tail::mend::<E, C::Layout, D>(ring.key(), work, page, tokens.clone(), lane, 32);
            warp::sync_warp(FULL_MASK);
        }
        let mut s: [f32; 8] = tile.logits::<E, C::Layout, D, 8>(ring.key().offset(own));
        soft_cap(&mut s, work.block.logits);
        if F::COMPACTED {
            let first = quarter * 16 + lane % 4 * 2;
            add_biases(&mut s, work.block, page, ring.cell(), first);
        }
        if warp::warp_vote_any(FULL_MASK, page.tokens != 0) {
            hide(&mut s, work, page, lane / 4, quarter * 16 + lane % 4 * 2);
            if C::FINITE {
                page_tail::clear::<C::Layout, D>(ring.value(), page.tokens, tokens, lane, 32);
                warp::sync_warp(FULL_MASK);
            }
        }
        let factor = if F::COMPACTED {
            tile.rows.update(&mut s, Logits::SCALED)
        } else {
            tile.rows.update(&mut s, work.block.logits)
        };
        tile.rescale(factor);
        tile.weigh::<E, C::Layout, D, 8>(&s, ring.value().offset(own));
        // The copy that fills the stage next is of the other proxy.
        bulk::fence_proxy_async_shared();
        ring.release();
    }
    ring.advance();
}
