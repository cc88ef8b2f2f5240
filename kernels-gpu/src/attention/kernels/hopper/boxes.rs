//! Blocks of another engine on their way into the ring: copies of boxes of its K and V, eight tokens each.
//!
//! One warp has K, another V. A lane has eight tokens of one of four pages: it looks up their block and copies the box.

use super::ring::Ring;
use super::{Source, after_queries};
use crate::abi::PAGE_TOKENS;
use crate::attention::kernels::Attend;
use crate::attention::kernels::cursor::{Asked, Cursor};
use crate::attention::kernels::format::{Coded, Format, Native};
use crate::attention::kernels::group_layout::Swizzled;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::tile::hopper::Tile;
use device::bulk::Bytes;
use device::shared::Shared;
use device::tensor::{self, TensorMap};
use device::warp::FULL_MASK;
use device::{global, mbarrier, register, warp};

/// K and V of one layer where another engine keeps them, whose rows are contiguous.
///
/// A map's dimensions are, innermost first: 64 dims, the tokens of a block, the row's parts of 64 dims, KV heads, blocks. A
/// box is eight tokens of one head, in the 128-byte swizzle.
#[derive(Clone, Copy, Debug)]
pub struct Boxes {
    /// Keys.
    pub k: *const TensorMap,
    /// As `k`.
    pub v: *const TensorMap,
    /// Ids of blocks. A page is `64 >> shift` of them, from the one on that the plan's page id names.
    pub table: *const u32,
    /// A block has `1 << shift` tokens, 8 to 64.
    pub shift: u32,
}

/// Groups of eight tokens in a page.
const GROUPS: u32 = PAGE_TOKENS / 8;
/// Pages whose blocks are looked up together: a group a lane.
const BATCH: u32 = 32 / GROUPS;

impl Source for Boxes {
    type Layout = Swizzled;
    const FINITE: bool = false;
    const PRODUCERS: u32 = 2;

    #[inline(always)]
    unsafe fn produce<F: Format, const D: usize, const S: u32>(
        self,
        _a: &Attend,
        producer: u32,
        kv_head: u32,
        _coded: Coded,
        shared: Shared<u8>,
        program: Program,
    ) {
        let lane = warp::lane_id();
        let half = if producer == 0 { self.k } else { self.v };
        // SAFETY: the caller's; the warp is whole.
        unsafe {
            if lane == 0 {
                tensor::prefetch(half);
            }
            let header = program.header();
            let mut cursor = Cursor::new(program, header, Asked::new(program, header));
            let mut ring = Ring::<D, S>::new(shared);
            after_queries::<Self>(&header);
            loop {
                // Waited for while the ring is full.
                let batch = self.take(&mut cursor, lane);
                let mut page = 0;
                // Not unrolled: the producers have few registers.
                while page < register::late(BATCH) {
                    let tokens = warp::warp_shuffle_idx(FULL_MASK, batch.tokens, page * GROUPS);
                    if tokens == 0 {
                        return;
                    }
                    ring.wait_empty();
                    if lane == page * GROUPS {
                        batch.announce(&ring, producer);
                    }
                    warp::sync_warp(FULL_MASK);
                    let group = lane % GROUPS;
                    if lane / GROUPS == page && group * 8 < tokens & !WHOLE {
                        let to = ring.key().offset(producer * Tile::<D>::HALF_BYTES);
                        let to = to.offset(group * Tile::<D>::GROUP_BYTES);
                        let slot = (group * 8) & ((1 << self.shift) - 1);
                        let at = [0, slot, 0, kv_head, batch.block];
                        tensor::copy_box_to_shared(to, half, at, ring.full());
                    }
                    ring.advance();
                    page += 1;
                }
            }
        }
    }
}

/// A batch of pages; a lane has a group of eight tokens of one.
#[derive(Clone, Copy)]
struct Batch {
    /// Tokens of the lane's page, with [`WHOLE`]; 0 if there is none.
    tokens: u32,
    /// Its place in the program.
    place: u32,
    /// The block that has the group.
    block: u32,
}

/// Every query of the item sees all 64 tokens of the page.
const WHOLE: u32 = 1 << 31;

impl Boxes {
    /// Looks up the blocks of the next pages.
    #[inline(always)]
    unsafe fn take(&self, cursor: &mut Cursor<Asked<Native>>, lane: u32) -> Batch {
        let mut batch = Batch { tokens: 0, place: 0, block: 0 };
        let mut id = 0;
        let mut page = 0;
        while page < register::late(BATCH) {
            // SAFETY: the warp is whole.
            unsafe { cursor.advance() };
            if lane / GROUPS == page {
                let PartialPage { tokens, place } = cursor.describe();
                let whole = tokens == 0 && cursor.page_tokens() > 0;
                batch.tokens = if whole { WHOLE | PAGE_TOKENS } else { tokens };
                batch.place = place;
                id = cursor.id();
            }
            page += 1;
        }
        let token = lane % GROUPS * 8;
        if token < batch.tokens & !WHOLE {
            let place = id + (token >> self.shift);
            // SAFETY: the tables have an entry for each of a sequence's tokens.
            batch.block = unsafe { global::load_u32(self.table.add(place as usize)) };
        }
        batch
    }
}

impl Batch {
    /// Says what the lane's page is, which the ring's next stage is to have, and how many bytes of K or V it will get.
    #[inline(always)]
    unsafe fn announce<const D: usize, const S: u32>(&self, ring: &Ring<D, S>, producer: u32) {
        let tokens = self.tokens & !WHOLE;
        // SAFETY: the stage is empty; each producer arrives once.
        unsafe {
            if producer == 0 {
                let whole = self.tokens & WHOLE != 0;
                let place = self.place;
                ring.describe(PartialPage { tokens: if whole { 0 } else { tokens }, place });
            }
            let bytes = Bytes::new(tokens.div_ceil(8) * Tile::<D>::GROUP_BYTES);
            mbarrier::arrive_expect_tx(ring.full(), bytes);
        }
    }
}
