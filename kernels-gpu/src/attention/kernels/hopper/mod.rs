//! `attend` on Hopper: `wgmma`, bulk copies, a producer warp.
//!
//! The producer warp streams the pages of the share's program into a ring in shared memory (`producer`, `ring`);
//! eight consumer warps take the program's work items one after the other (`consume`), by `narrow` up to 16 rows
//! and by `wide` above. So loads never wait for a work item's beginning or end. Where pages come from is a [`Source`]: the
//! pool, or blocks of another engine (`boxes`).

mod boxes;
mod cells;
mod coded;
mod narrow;
mod page_tail;
mod producer;
mod ring;
mod wide;

use super::Attend;
use super::block::{Block, Work};
use super::cells::Cells;
use super::format::{Coded, Format};
use super::group_layout::GroupLayout;
use super::program::Program;
use super::query;
use crate::abi::ProgramHeader;
use crate::attention::tile::{CONSUMER_WARPS, CONSUMERS, PROGRAM_BYTES, hopper::Tile};
use coded::Slots;
use device::bulk::{self, Bytes};
use device::mbarrier::{self, Barrier};
use device::shared::{Shared, dynamic_shared_mem};
use device::wgmma::Accumulators;
use device::{Element, grid, register, thread, warp};
use ring::Ring;

pub use boxes::Boxes;

/// Where a launch's pages come from.
pub trait Source: Copy {
    /// How tokens lie in the ring.
    type Layout: GroupLayout;

    /// Whether V is finite. Otherwise it is looked through where not all queries of an item see a page.
    const FINITE: bool;

    /// Producer warps, each of which arrives where a page is full.
    const PRODUCERS: u32;

    /// Producer warp: brings its part of the program's pages into the ring, those of a format to where `coded` says.
    ///
    /// # Safety
    /// As [`attend`].
    unsafe fn produce<F: Format, const D: usize, const S: u32>(
        self,
        a: &Attend,
        producer: u32,
        kv_head: u32,
        coded: Coded,
        shared: Shared<u8>,
        program: Program,
    );
}

/// One block of `attend` over pages of `source`, or of format `F`, of which `coded` says more. `KS = D / 16`, `NT = D / 8`, `O = D / 2`
/// for head dimension `D`; the ring has `S` pages, [`Tile::STAGES`] of native ones and fewer beside codes.
///
/// # Safety
/// Blocks have [`THREADS`](crate::attention::tile::hopper::THREADS) threads ([`Tile::CODED_THREADS`] for formats) and [`Tile::SHARED_BYTES`] of dynamic shared memory
/// ([`Tile::COMPACTED_SHARED_BYTES`] for compacted nodes). The pointers
/// are valid for what the plan and the sizes say; the plan's page ids, slots and masks lie within pool, lengths and
/// partials, and its segments lie in program order, each in one work item. Items are of native pages, or of the format, whose pages are full.
/// Those of native pages come first.
#[inline(always)]
pub unsafe fn attend<
    E: Element,
    F: Format,
    C: Source,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const O: usize,
    const S: u32,
>(
    a: Attend,
    source: C,
    coded: Coded,
) where
    [f32; O]: Accumulators,
{
    let base = dynamic_shared_mem::<u8>();
    let kv_head = thread::block_idx_y();
    let thread_index = thread::thread_idx_x();
    // SAFETY: the caller's; roles are taken by whole warps, register counts by whole warpgroups.
    unsafe {
        let warp_index = warp::warp_id();
        let words = a.program(thread::block_idx_x());
        if thread_index == CONSUMERS {
            prologue::<D, S>(
                base,
                words,
                a.stride,
                if F::CODED { coded::FILLERS } else { C::PRODUCERS },
            );
            if F::CODED {
                Slots::<D, S>::new(base, coded).init();
                mbarrier::fence_init();
            }
        }
        // All blocks of a launch that fills the device are here by now: the merge may be set up meanwhile, and
        // waits for this launch's end before it reads.
        grid::launch_dependents();
        thread::sync_threads();
        let program = Program {
            cached: base.offset(Tile::<D>::PROGRAM).cast(),
            counts: base.offset(Tile::<D>::COUNTS).cast(),
            words,
            lengths: a.lengths,
            cells: Cells::of::<F>(&coded, a.kv_heads, kv_head),
        };
        if warp_index >= CONSUMER_WARPS {
            register::set_max_dec::<40>();
            if warp_index < CONSUMER_WARPS + C::PRODUCERS {
                let producer = warp_index - CONSUMER_WARPS;
                mbarrier::wait_parity(program_barrier::<D>(base), 0);
                source.produce::<F, D, S>(&a, producer, kv_head, coded, base, program);
                if F::CODED || F::COMPACTED {
                    // The launch before is of the same call and another format: who waits for this one waits for both.
                    grid::wait_dependencies();
                }
            } else if F::CODED {
                coded::decode::<E, D, S>(base, coded, warp_index - CONSUMER_WARPS - 1);
            }
        } else {
            if F::CODED && D <= 128 {
                register::set_max_inc::<216>();
            } else {
                register::set_max_inc::<232>();
            }
            let mut block = Block::new(&a, base, thread_index, warp_index, kv_head, coded.biases);
            block.group = block.group.divided();
            mbarrier::wait_parity(program_barrier::<D>(base), 0);
            consume::<E, F, C, D, KS, NT, O, S>(&block, program);
        }
    }
}

/// Sets up the ring, whose pages `fillers` arrivals fill, and asks for the program; one thread.
#[inline(always)]
unsafe fn prologue<const D: usize, const S: u32>(
    base: Shared<u8>,
    words: *const u32,
    stride: u32,
    fillers: u32,
) {
    let program_barrier = program_barrier::<D>(base);
    // SAFETY: nobody else is past the block's barrier yet; the program is at least as long as what is copied.
    unsafe {
        let mut ring = Ring::<D, S>::new(base);
        let mut stage = 0;
        while stage < S {
            mbarrier::init(ring.full(), fillers);
            mbarrier::init(ring.empty(), ring::RELEASES);
            ring.advance();
            stage += 1;
        }
        mbarrier::init(program_barrier, 1);
        mbarrier::fence_init();
        bulk::fence_proxy_async_shared();
        let bytes = Bytes::new((stride * 4).min(PROGRAM_BYTES));
        let cached = base.offset(Tile::<D>::PROGRAM).cast();
        mbarrier::arrive_expect_tx(program_barrier, bytes);
        bulk::copy_global_to_shared(cached, words, bytes, program_barrier);
    }
}

#[inline(always)]
fn program_barrier<const D: usize>(base: Shared<u8>) -> Barrier {
    let end = Tile::<D>::RECORDS + Tile::<D>::STAGES * Tile::<D>::RECORD_BYTES;
    Barrier::at(base.offset(end).cast())
}

/// Barrier that consumers come to when they have asked for the first item's queries.
const QUERIES_ASKED: u32 = 4;

/// Threads that come to it.
const fn threads_at_queries<C: Source>() -> u32 {
    CONSUMERS + 32 * C::PRODUCERS
}

/// Producer warps: waits until the first item's queries are asked for. A ring of pages is microseconds of traffic, and what is
/// asked for behind it comes after it, while no page can be used without queries.
#[inline(always)]
unsafe fn after_queries<C: Source>(header: &ProgramHeader) {
    if header.items > 0 {
        // SAFETY: all threads that are counted come here once, if there are items.
        unsafe { thread::named_barrier_sync::<QUERIES_ASKED>(threads_at_queries::<C>()) };
    }
}

/// The consumers' way through the program's work items.
#[inline(always)]
unsafe fn consume<
    E: Element,
    F: Format,
    C: Source,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const O: usize,
    const S: u32,
>(
    block: &Block,
    program: Program,
) where
    [f32; O]: Accumulators,
{
    let mut ring = Ring::<D, S>::new(block.shared);
    // SAFETY: as in `attend`; all consumers go the same way.
    unsafe {
        let header = program.header();
        let tokens = if F::COMPACTED {
            program.ask_cells(&header, block.thread)
        } else {
            program.ask_count(&header, block.thread)
        };
        let mut index = 0;
        while index < header.items {
            let item = program.item(index);
            let map = block.row_map(&item, program);
            let narrow = map.rows <= 16;
            let padded = if narrow { 16 } else { map.rows.next_multiple_of(64) };
            let queries = query::ask::<D>(block.q, &map, block.thread);
            if index == 0 {
                thread::named_barrier_arrive::<QUERIES_ASKED>(threads_at_queries::<C>());
                program.keep_count(&header, block.thread, tokens);
            } else {
                // The last item's epilogue still reads the query tile.
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            let tile = block.shared.offset(Tile::<D>::QUERY).cast();
            queries.keep::<D>(tile, padded, block.thread);
            bulk::fence_proxy_async_shared();
            thread::named_barrier_sync::<1>(CONSUMERS);
            let work = Work {
                block,
                program,
                items: header.items,
                index,
                pages: if F::COMPACTED {
                    program.cell_pages(header.items, &item)
                } else {
                    program.pages(header.items, &item)
                },
            };
            if narrow {
                narrow::run::<E, F, C, D, KS, NT, S>(&work, &mut ring);
            } else if map.rows <= 64 {
                wide::run::<E, F, C, D, KS, O, S>(&work, &mut ring, true);
            } else if Tile::<D>::MAX_ROWS > 64 {
                wide::run::<E, F, C, D, KS, O, S>(&work, &mut ring, false);
            }
            index += 1;
        }
    }
}
