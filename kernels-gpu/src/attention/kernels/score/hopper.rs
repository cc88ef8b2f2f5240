//! `score` on Hopper: a warp streams K of the program's pages into a ring, two warpgroups take turns at pages.

use super::{Block, Score, Totals, hide};
use crate::abi::{ProgramHeader, WorkItem};
use crate::attention::kernels::ampere::load_program;
use crate::attention::kernels::cells::{self, Cells};
use crate::attention::kernels::cursor::{Cursor, Kept};
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::kernels::query;
use crate::attention::kernels::rows::soft_cap;
use crate::attention::tile::{CONSUMER_WARPS, CONSUMERS, score::Hopper as Tile};
use device::bulk::{self, Bytes};
use device::matrix::Row;
use device::mbarrier::{self, Barrier};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::FULL_MASK;
use device::wgmma::{Descriptor, Operand};
use device::{Element, thread, warp, wgmma};

/// Warps of the one warpgroup that reads a page.
const READERS: u32 = CONSUMER_WARPS / 2;

/// One block of `score`. `KS = D / 16` for head dimension `D`.
///
/// # Safety
/// Blocks have as many threads and as much dynamic shared memory as [`tile::score`](crate::attention::tile::score) says.
/// The pointers are valid for what the plan and the sizes say; the plan's page ids, slots and masks lie within pool or
/// directory, lengths and scores, and its segments lie in program order, each in one work item. Pages are native, or those
/// of the directory.
#[inline(always)]
pub unsafe fn score<E: Element, const D: usize, const KS: usize>(a: Score) {
    let base = dynamic_shared_mem::<u8>();
    let kv_head = thread::block_idx_y();
    let thread_index = thread::thread_idx_x();
    // SAFETY: the caller's; roles are taken by whole warps.
    unsafe {
        let words = a.program(thread::block_idx_x());
        let cached = base.offset(Tile::<D>::PROGRAM);
        load_program(cached.cast(), words, a.stride, thread_index);
        if thread_index == CONSUMERS {
            Ring::<D>::new(base).init();
            mbarrier::fence_init();
        }
        thread::sync_threads();
        let program = Program {
            cached: cached.cast(),
            counts: base.offset(Tile::<D>::COUNTS).cast(),
            words,
            lengths: a.lengths,
            cells: Cells::new(a.cells, a.cell_stride, kv_head),
        };
        let header = program.header();
        let tokens = program.ask_cells(&header, thread_index);
        program.keep_count(&header, thread_index, tokens);
        thread::sync_threads();
        let mut block = Block::new(a, base, thread_index, kv_head, program);
        block.items = header.items;
        if thread_index < CONSUMERS {
            consume::<E, D, KS>(&block, header);
        } else {
            produce::<D>(&block, header);
        }
    }
}

/// Streams K of every page, in program order.
#[inline(always)]
unsafe fn produce<const D: usize>(block: &Block, header: ProgramHeader) {
    let mut ring = Ring::<D>::new(block.shared);
    let program = block.program;
    let mut cursor = Cursor::new(program, header, Kept { program, header });
    // SAFETY: the warp is whole, and one lane of it streams; a stage is written only when it is empty.
    unsafe {
        cursor.advance_cell();
        while cursor.rows() > 0 {
            if warp::lane_id() == 0 {
                let (cell, tokens) = (block.cell(cursor.id()), cursor.rows());
                let source = cells::key::<D>(block.score.pool, cell);
                let bytes = Bytes::new(tokens.div_ceil(8) * Tile::<D>::GROUP_BYTES);
                mbarrier::wait_parity(ring.empty(), ring.phase ^ 1);
                ring.describe(cursor.describe_cell(), cell);
                mbarrier::arrive_expect_tx(ring.full(), bytes);
                bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
            }
            ring.advance();
            cursor.advance_cell();
        }
    }
}

/// The consumers' way through the program's work items.
#[inline(always)]
unsafe fn consume<E: Element, const D: usize, const KS: usize>(
    block: &Block,
    header: ProgramHeader,
) {
    let mut ring = Ring::<D>::new(block.shared);
    // SAFETY: all consumers go the same way.
    unsafe {
        let mut index = 0;
        while index < header.items {
            let item = block.program.item(index);
            let map = block.row_map(&item);
            let padded = map.rows.next_multiple_of(64);
            if index > 0 {
                // The item before still reads queries and rows.
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            let tile = block.shared.offset(Tile::<D>::QUERY).cast();
            query::load::<D>(block.score.q, tile, &map, padded, block.thread);
            if block.thread < Tile::<D>::MAX_ROWS {
                let rows = block.shared.offset(Tile::<D>::ROWS).cast();
                block.keep_row(&map, block.thread, rows);
            }
            bulk::fence_proxy_async_shared();
            thread::named_barrier_sync::<1>(CONSUMERS);
            let mut left = block.program.cell_pages(header.items, &item);
            while left > 0 {
                if ring.stage % 2 == block.thread / 128 {
                    tokens_of::<E, D, KS>(block, &item, &ring, padded);
                }
                ring.advance();
                left -= 1;
            }
            index += 1;
        }
    }
}

/// A page, by one warpgroup, 64 rows at a time.
#[inline(always)]
unsafe fn tokens_of<E: Element, const D: usize, const KS: usize>(
    block: &Block,
    item: &WorkItem,
    ring: &Ring<D>,
    padded: u32,
) {
    let group = Tile::<D>::GROUP_BYTES;
    let lane = block.thread % 32;
    let token = block.thread % 128 / 32 * 16 + lane / 4;
    let queries: Shared<Row> = block.shared.offset(Tile::<D>::QUERY).cast();
    let kept: Shared<[u32; 2]> = block.shared.offset(Tile::<D>::ROWS).cast();
    let operand =
        |first| Operand { descriptor: Descriptor::new(first, 128, group), step_bytes: 256 };
    // SAFETY: all warps of the warpgroup are here; a stage is read between its arrival and its release.
    unsafe {
        mbarrier::wait_parity(ring.full(), ring.phase);
        let (page, cell) = ring.page();
        // The same for all lanes, which the compiler cannot see.
        let key = warp::warp_shuffle_idx(FULL_MASK, ring.key(), 0);
        let mut totals = Totals::new(block, page, cell, token);
        let mut row = 0;
        while row < padded {
            let mut s = [0.0f32; 32];
            let rows = operand(queries.offset(row / 8 * group));
            wgmma::fence();
            wgmma::mma_shared::<E, false, false, KS, _>(&mut s, operand(key), rows, false);
            wgmma::commit_group();
            wgmma::wait_group_settle::<0, _>(&mut s);
            if row + 64 == padded {
                ring.release();
            }
            soft_cap(&mut s, block.logits);
            if page.tokens != 0 {
                hide(&mut s, block, item, page, token, row + lane % 4 * 2);
            }
            totals.add(&s, block, kept.at(row));
            row += 64;
        }
        totals.store(block, page, cell, token);
    }
}

/// A position in the ring of halves of pages.
#[derive(Clone, Copy)]
struct Ring<const D: usize> {
    shared: Shared<u8>,
    stage: u32,
    phase: u32,
}

impl<const D: usize> Ring<D> {
    #[inline(always)]
    fn new(shared: Shared<u8>) -> Self {
        Self { shared, stage: 0, phase: 0 }
    }

    /// Sets up the barriers; one thread.
    #[inline(always)]
    unsafe fn init(mut self) {
        while self.phase == 0 {
            // SAFETY: nobody uses the barriers yet.
            unsafe {
                mbarrier::init(self.full(), 1);
                mbarrier::init(self.empty(), READERS);
            }
            self.advance();
        }
    }

    #[inline(always)]
    fn record(&self) -> Shared<u8> {
        self.shared.offset(Tile::<D>::RECORDS + self.stage * Tile::<D>::RECORD_BYTES)
    }

    /// Completes when the stage's bytes have landed.
    #[inline(always)]
    fn full(&self) -> Barrier {
        Barrier::at(self.record().cast())
    }

    /// Completes when the stage may be overwritten.
    #[inline(always)]
    fn empty(&self) -> Barrier {
        Barrier::at(self.record().offset(8).cast())
    }

    #[inline(always)]
    fn key(&self) -> Shared<Row> {
        self.shared.offset(self.stage * Tile::<D>::HALF_BYTES).cast()
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.stage += 1;
        if self.stage == Tile::<D>::STAGES {
            self.stage = 0;
            self.phase ^= 1;
        }
    }

    /// Producer: says what the stage's page is.
    #[inline(always)]
    unsafe fn describe(&self, page: PartialPage, cell: u32) {
        let words: Shared<u32> = self.record().offset(16).cast();
        // SAFETY: the stage is the producer's until it says that it is full.
        unsafe {
            words.store(page.tokens);
            words.at(1).store(page.place);
            words.at(2).store(cell);
        }
    }

    /// Consumer: what the stage's page is, and its cell.
    #[inline(always)]
    unsafe fn page(&self) -> (PartialPage, u32) {
        let words: Shared<u32> = self.record().offset(16).cast();
        // SAFETY: the stage has arrived, with its description.
        unsafe {
            let page = PartialPage { tokens: words.load(), place: words.at(1).load() };
            (page, words.at(2).load())
        }
    }

    /// Consumer warp: gives the stage back.
    #[inline(always)]
    unsafe fn release(&self) {
        // SAFETY: the warp is whole; one arrival a warp of the warpgroup that has the page.
        unsafe {
            warp::sync_warp(FULL_MASK);
            if warp::lane_id() == 0 {
                mbarrier::arrive(self.empty());
            }
        }
    }
}
