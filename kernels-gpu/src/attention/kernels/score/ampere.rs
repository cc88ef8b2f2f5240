//! `score` on Ampere and what follows it: all eight warps load and compute. Four share a page's tokens, and the other four
//! have the other half of the rows.

use super::narrow::{self, Columns, Landed};
use super::{Block, Score};
use crate::abi::PAGE_TOKENS;
use crate::attention::kernels::ampere::load_program;
use crate::attention::kernels::cells::{self, Cells};
use crate::attention::kernels::cursor::{Cursor, Kept};
use crate::attention::kernels::format::token_of;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::kernels::query;
use crate::attention::tile::{CONSUMERS, score::Ampere as Tile};
use device::matrix::Row;
use device::shared::{Shared, dynamic_shared_mem};
use device::{Element, async_copy, thread};

/// Rows that a warp takes at a time.
const CHUNK: u32 = 32;

/// One block of `score`. `KS = D / 16` for head dimension `D`.
///
/// # Safety
/// As [`super::hopper::score`], with threads and shared memory of this architecture.
#[inline(always)]
pub unsafe fn score<E: Element, const D: usize, const KS: usize>(a: Score) {
    let base = dynamic_shared_mem::<u8>();
    let kv_head = thread::block_idx_y();
    let thread_index = thread::thread_idx_x();
    // SAFETY: the caller's; all threads go the same way.
    unsafe {
        let words = a.program(thread::block_idx_x());
        let cached = base.offset(Tile::<D>::PROGRAM);
        load_program(cached.cast(), words, a.stride, thread_index);
        thread::sync_threads();
        let program = Program {
            cached: cached.cast(),
            counts: base.offset(Tile::<D>::COUNTS).cast(),
            words,
            lengths: a.lengths,
            cells: Cells::new(a.cells, a.cell_stride, a.kv_heads, kv_head),
        };
        let header = program.header();
        let tokens = program.ask_cells(&header, thread_index);
        program.keep_count(&header, thread_index, tokens);
        thread::sync_threads();
        let mut block = Block::new(a, base, thread_index, kv_head, program);
        block.items = header.items;
        let mut keys = Keys::<D> {
            block: &block,
            last: Cursor::new(program, header, Kept { program, header }),
            stage: 0,
        };
        keys.start();
        let mut index = 0;
        while index < header.items {
            let item = program.item(index);
            let map = block.row_map(&item);
            if index > 0 {
                // The item before still reads queries and rows.
                thread::sync_threads();
            }
            let padded = map.rows.next_multiple_of(CHUNK);
            let tile = base.offset(Tile::<D>::QUERY).cast();
            let kept = base.offset(Tile::<D>::ROWS).cast();
            // On its way while queries are loaded.
            let asked = block.ask_row(&map, thread_index);
            query::load::<D>(a.q, tile, &map, padded, thread_index);
            if thread_index < Tile::<D>::MAX_ROWS {
                kept.at(thread_index).store(block.kept(asked));
            }
            thread::sync_threads();
            let warp_index = thread_index / 32;
            let columns = Columns {
                queries: tile,
                kept,
                first: warp_index / 4 * CHUNK,
                step: 2 * CHUNK,
                end: padded,
            };
            let mut left = program.cell_pages(header.items, &item);
            while left > 0 {
                let landed = keys.next();
                // Without rows of its own a warp has nothing to say.
                if columns.first < padded {
                    let first = warp_index % 4 * 16;
                    narrow::score::<E, D, KS, { CHUNK as usize / 2 }>(
                        &block, &item, landed, first, columns,
                    );
                }
                left -= 1;
            }
            index += 1;
        }
    }
}

/// K of the program's pages on its way into shared memory. Each step asks for the page that takes the place of the one
/// before.
struct Keys<'a, const D: usize> {
    block: &'a Block,
    /// The page that was asked for last.
    last: Cursor<Kept>,
    /// Stage of the page that is next to be read.
    stage: u32,
}

impl<const D: usize> Keys<'_, D> {
    #[inline(always)]
    unsafe fn start(&mut self) {
        for stage in 0..Tile::<D>::STAGES - 1 {
            // SAFETY: the stages are empty.
            unsafe { self.ask(stage) };
        }
    }

    #[inline(always)]
    fn key(&self, stage: u32) -> Shared<Row> {
        self.block.shared.offset(stage * Tile::<D>::HALF_BYTES).cast()
    }

    #[inline(always)]
    fn record(&self, stage: u32) -> Shared<u32> {
        let records = self.block.shared.offset(Tile::<D>::RECORDS);
        records.offset(stage * Tile::<D>::RECORD_BYTES).cast()
    }

    /// Waits for the next page, for all threads, which are through with the one before: its K, what it is, and its cell.
    #[inline(always)]
    unsafe fn next(&mut self) -> Landed {
        match Tile::<D>::STAGES {
            8 => async_copy::wait_group::<6>(),
            4 => async_copy::wait_group::<2>(),
            _ => async_copy::wait_group::<0>(),
        }
        let (stage, stages) = (self.stage, Tile::<D>::STAGES);
        // SAFETY: after the barrier nobody reads the page before.
        unsafe {
            thread::sync_threads();
            self.ask(if stage == 0 { stages - 1 } else { stage - 1 });
            self.stage = if stage + 1 == stages { 0 } else { stage + 1 };
            let record = self.record(stage);
            let page = PartialPage { tokens: record.load(), place: record.at(1).load() };
            Landed { key: self.key(stage), page, cell: record.at(2).load() }
        }
    }

    /// Moves to the program's next page and asks for its K. Tokens past its last have no score, whatever lies there.
    #[inline(always)]
    unsafe fn ask(&mut self, stage: u32) {
        let thread = self.block.thread;
        // SAFETY: all threads move together; nobody reads the stage.
        unsafe {
            self.last.advance_cell();
            if self.last.rows() > 0 {
                let (cell, tokens) = (self.last.id(), self.last.rows());
                if thread == 0 {
                    let page = self.last.describe_cell();
                    let record = self.record(stage);
                    record.store(page.tokens);
                    record.at(1).store(page.place);
                    record.at(2).store(cell);
                }
                let source = cells::key::<D>(self.block.score.pool, cell);
                for i in 0..Tile::<D>::HALF_BYTES / (16 * CONSUMERS) {
                    let piece = thread + i * CONSUMERS;
                    if token_of::<D>(piece) < tokens {
                        async_copy::copy_16(self.key(stage).at(piece), source.add(piece as usize));
                    }
                }
            }
        }
        // Without copies too: steps count groups.
        async_copy::commit_group();
    }
}

const _: () = assert!(PAGE_TOKENS == 4 * 16);
