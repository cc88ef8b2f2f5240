//! The kernels. The figures that the host needs too are in [`super::tile`].

#![cfg_attr(
    not(target_arch = "nvptx64"),
    expect(
        clippy::needless_range_loop,
        reason = "arrays of registers are walked by index"
    )
)]

mod block;
mod merge;
mod narrow;
mod page_tail;
mod producer;
mod program;
mod query;
mod ring;
mod rows;
mod sink;
mod wide;

use super::tile::{CONSUMER_WARPS, CONSUMERS, PROGRAM_BYTES, Tile};
use crate::abi::MergeRow;
use crate::device::wgmma::Accumulators;
use crate::device::{Bf16, Element, F16, bulk, grid, mbarrier, register, shared, thread, warp};
use crate::{kernel, layout};
use block::{Block, Work};
use program::Program;
use query::Group;
use ring::Ring;
use rows::Logits;
use sink::Outputs;

pub use merge::{Merge, merge};

/// What an `attend` launch reads and writes. Grid: `[shares, kv_heads]`.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub q: *const u16,
    /// The layer's pages, `[page][kv_head][page elements]`, 16 bit (see [`crate::layout`]).
    pub pool: *const u16,
    /// The plan's programs, `[shares][stride]` words.
    pub programs: *const u32,
    /// The plan's masks.
    pub masks: *const u64,
    /// Node lengths by slot.
    pub lengths: *const u32,
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub out: *mut u16,
    /// `[queries, q_heads]`, natural logarithm; null if not wanted.
    pub lse: *mut f32,
    /// `[kv_heads][partial_slots][group][head_dim]`, normalised.
    pub partial_o: *mut f32,
    /// `[kv_heads][partial_slots][group]`, base 2.
    pub partial_lse: *mut f32,
    /// Words from one program to the next; a multiple of 4.
    pub stride: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Query heads a KV head.
    pub group: u32,
    /// Partial slots a KV head.
    pub partial_slots: u32,
    /// Logit scale times log2(e).
    pub scale_log2: f32,
    /// Logits `s` become `cap tanh(s / cap)`; 0 for none.
    pub soft_cap: f32,
}

/// One block of `attend`. `KS = D / 16`, `NT = D / 8`, `O = D / 2` for head dimension `D`.
///
/// # Safety
/// Blocks have [`super::tile::THREADS`] threads and [`Tile::SHARED_BYTES`] of dynamic shared memory. The pointers
/// are valid for what the plan and the sizes say; the plan's page ids, slots and masks lie within pool, lengths and
/// partials, and its segments lie in program order, each in one work item.
#[inline(always)]
pub unsafe fn attend<E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize>(
    a: Attend,
) where
    [f32; O]: Accumulators,
{
    let base = shared::dynamic_shared();
    let share = thread::block_idx_x();
    let kv_head = thread::block_idx_y();
    let thread_index = thread::thread_idx_x();
    // SAFETY: the caller's; roles are taken by whole warps, register counts by whole warpgroups.
    unsafe {
        let warp_index = warp::warp_id();
        let words = a.programs.add(share as usize * a.stride as usize);
        if thread_index == CONSUMERS {
            prologue::<D>(base, words, a.stride);
        }
        // All blocks of a launch that fills the device are here by now: the merge may be set up meanwhile, and
        // waits for this launch's end before it reads.
        grid::launch_dependents();
        thread::sync_threads();
        let program = Program {
            cached: base + Tile::<D>::PROGRAM,
            counts: base + Tile::<D>::COUNTS,
            words,
            lengths: a.lengths,
        };
        if warp_index >= CONSUMER_WARPS {
            register::set_max_dec::<40>();
            if warp_index == CONSUMER_WARPS {
                mbarrier::wait_parity(program_barrier::<D>(base), 0);
                let page_bytes = 2 * layout::page_elements(D as u32) as u64;
                let pages = a
                    .pool
                    .cast::<u8>()
                    .add((u64::from(kv_head) * page_bytes) as usize);
                producer::produce::<D>(base, program, pages, page_bytes * u64::from(a.kv_heads));
            }
        } else {
            register::set_max_inc::<232>();
            mbarrier::wait_parity(program_barrier::<D>(base), 0);
            let block = Block {
                shared: base,
                thread: thread_index,
                warp: warp_index,
                kv_heads: a.kv_heads,
                kv_head,
                group: Group::new(a.group),
                logits: Logits::new(a.scale_log2, a.soft_cap),
                q: a.q,
                masks: a.masks,
                outputs: Outputs {
                    out: a.out,
                    lse: a.lse,
                    partial_o: a.partial_o,
                    partial_lse: a.partial_lse,
                    partial_slots: a.partial_slots,
                },
            };
            consume::<E, D, KS, NT, O>(&block, program);
        }
    }
}

/// Sets up the ring and asks for the program; one thread.
#[inline(always)]
unsafe fn prologue<const D: usize>(base: u32, words: *const u32, stride: u32) {
    let program_barrier = program_barrier::<D>(base);
    // SAFETY: nobody else is past the block's barrier yet; the program is at least as long as what is copied.
    unsafe {
        let mut ring = Ring::<D>::new(base);
        let mut stage = 0;
        while stage < Tile::<D>::STAGES {
            mbarrier::init(ring.full(), 1);
            mbarrier::init(ring.empty(), CONSUMER_WARPS);
            ring.advance();
            stage += 1;
        }
        mbarrier::init(program_barrier, 1);
        mbarrier::fence_init();
        bulk::fence_proxy_async_shared();
        let bytes = (stride * 4).min(PROGRAM_BYTES);
        mbarrier::arrive_expect_tx(program_barrier, bytes);
        bulk::copy_global_to_shared(base + Tile::<D>::PROGRAM, words, bytes, program_barrier);
    }
}

#[inline(always)]
fn program_barrier<const D: usize>(base: u32) -> u32 {
    base + Tile::<D>::RECORDS + Tile::<D>::STAGES * Tile::<D>::RECORD_BYTES
}

/// The consumers' way through the program's work items.
#[inline(always)]
unsafe fn consume<E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize>(
    block: &Block,
    program: Program,
) where
    [f32; O]: Accumulators,
{
    let mut ring = Ring::<D>::new(block.shared);
    // SAFETY: as in `attend`; all consumers go the same way.
    unsafe {
        let header = program.header();
        program.count_tokens(&header, block.thread);
        let mut index = 0;
        while index < header.items {
            let item = program.item(index);
            let map = block.row_map(&item);
            let narrow = map.rows <= 16;
            let padded = if narrow {
                16
            } else {
                map.rows.next_multiple_of(64)
            };
            if index > 0 {
                // The last item's epilogue still reads the query tile.
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            query::load::<D>(
                block.q,
                block.shared + Tile::<D>::QUERY,
                &map,
                padded,
                block.thread,
            );
            bulk::fence_proxy_async_shared();
            thread::named_barrier_sync::<1>(CONSUMERS);
            let work = Work {
                block,
                program,
                items: header.items,
                index,
                pages: program.pages(header.items, &item),
            };
            if narrow {
                narrow::run::<E, D, KS, NT>(&work, &mut ring);
            } else if map.rows <= 64 {
                wide::run::<E, D, KS, O>(&work, &mut ring, true);
            } else if Tile::<D>::MAX_ROWS > 64 {
                wide::run::<E, D, KS, O>(&work, &mut ring, false);
            }
            index += 1;
        }
    }
}

macro_rules! attend_entries {
    ($($name:ident, $element:ty, $d:literal;)+) => {
        kernel! { $(
            unsafe fn $name(
                q: *const u16,
                pool: *const u16,
                programs: *const u32,
                masks: *const u64,
                lengths: *const u32,
                out: *mut u16,
                lse: *mut f32,
                partial_o: *mut f32,
                partial_lse: *mut f32,
                stride: u32,
                kv_heads: u32,
                group: u32,
                partial_slots: u32,
                scale_log2: f32,
                soft_cap: f32,
            ) = |q, pool, programs, masks, lengths, out, lse, partial_o, partial_lse, stride, kv_heads, group,
                 partial_slots, scale_log2, soft_cap| attend::<$element, $d, { $d / 16 }, { $d / 8 }, { $d / 2 }>(
                Attend {
                    q, pool, programs, masks, lengths, out, lse, partial_o, partial_lse, stride, kv_heads, group,
                    partial_slots, scale_log2, soft_cap,
                },
            );
        )+ }
    };
}
attend_entries! {
    attend_bf16_d64, Bf16, 64;
    attend_bf16_d128, Bf16, 128;
    attend_bf16_d256, Bf16, 256;
    attend_f16_d64, F16, 64;
    attend_f16_d128, F16, 128;
    attend_f16_d256, F16, 256;
}

macro_rules! merge_entries {
    ($($name:ident, $element:ty, $d:literal;)+) => {
        kernel! { $(
            unsafe fn $name(
                partial_o: *const f32,
                partial_lse: *const f32,
                rows: *const MergeRow,
                slots: *const u32,
                out: *mut u16,
                lse: *mut f32,
                row_count: u32,
                partial_slots: u32,
                kv_heads: u32,
                group: u32,
            ) = |partial_o, partial_lse, rows, slots, out, lse, row_count, partial_slots, kv_heads, group| {
                merge::<$element, $d, { $d / 32 }>(Merge {
                    partial_o, partial_lse, rows, slots, out, lse, row_count, partial_slots, kv_heads, group,
                })
            };
        )+ }
    };
}
merge_entries! {
    merge_bf16_d64, Bf16, 64;
    merge_bf16_d128, Bf16, 128;
    merge_bf16_d256, Bf16, 256;
    merge_f16_d64, F16, 64;
    merge_f16_d128, F16, 128;
    merge_f16_d256, F16, 256;
}
