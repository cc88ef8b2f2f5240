//! `score` on Hopper: a warp streams K of the program's pages into a ring. Of items of many rows two warpgroups take turns at
//! pages, of others all warps.

use super::narrow::{self, Columns, Landed};
use super::ring::Ring;
use super::{Block, Score, Totals, hide};
use crate::abi::{PAGE_TOKENS, ProgramHeader, WorkItem};
use crate::attention::kernels::ampere::load_program;
use crate::attention::kernels::cells::{self, Cells};
use crate::attention::kernels::cursor::{Cursor, Kept};
use crate::attention::kernels::program::Program;
use crate::attention::kernels::query::{self, RowMap};
use crate::attention::kernels::rows::soft_cap;
use crate::attention::tile::{CONSUMERS, score::Hopper as Tile};
use device::bulk::{self, Bytes};
use device::matrix::Row;
use device::mbarrier;
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::FULL_MASK;
use device::wgmma::{Descriptor, Operand};
use device::{Element, register, thread, warp, wgmma};

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
            cells: Cells::new(a.cells, a.cell_stride, a.kv_heads, kv_head),
        };
        let header = program.header();
        let tokens = program.ask_cells(&header, thread_index);
        program.keep_count(&header, thread_index, tokens);
        thread::sync_threads();
        let mut block = Block::new(a, base, thread_index, kv_head, program);
        block.items = header.items;
        if thread_index < CONSUMERS {
            register::set_max_inc::<232>();
            consume::<E, D, KS>(&block, header);
        } else {
            register::set_max_dec::<40>();
            if thread_index < CONSUMERS + 32 {
                produce::<D>(&block, header);
            }
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
                let (cell, tokens) = (cursor.id(), cursor.rows());
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
    let mut turn = 0;
    let mut was_narrow = true;
    let mut index = 0;
    // SAFETY: all consumers go the same way, or each warp its own through items whose rows are the warp's alone.
    unsafe {
        while index < header.items {
            let item = block.program.item(index);
            let map = block.row_map(&item);
            let pages = block.program.cell_pages(header.items, &item);
            let is_narrow = map.rows <= Tile::<D>::NARROW_ROWS;
            if index > 0 && !(is_narrow && was_narrow) {
                // The item before still reads queries and rows.
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            if is_narrow {
                few_rows::<E, D, KS>(block, &item, &map, ring, turn, pages);
            } else {
                many_rows::<E, D, KS>(block, &item, &map, ring, turn, pages);
            }
            ring = ring.further(pages);
            turn += pages;
            was_narrow = is_narrow;
            index += 1;
        }
    }
}

/// An item of few rows: warps take turns at its pages, and each that has one has the rows in a place of its own. So many
/// such items are under way at once.
#[inline(always)]
unsafe fn few_rows<E: Element, const D: usize, const KS: usize>(
    block: &Block,
    item: &WorkItem,
    map: &RowMap,
    mut ring: Ring<D>,
    turn: u32,
    pages: u32,
) {
    let (own, lane) = (block.thread / 32, block.thread % 32);
    let mut at = own.wrapping_sub(turn) % Tile::<D>::NARROW_WARPS;
    if own >= Tile::<D>::NARROW_WARPS {
        at = pages;
    }
    let rows = Tile::<D>::NARROW_ROWS;
    let columns = Columns {
        queries: block
            .shared
            .offset(Tile::<D>::QUERY + own * rows / 8 * Tile::<D>::GROUP_BYTES)
            .cast(),
        kept: kept::<D>(block).at(own * rows),
        first: 0,
        step: rows,
        end: rows,
    };
    // SAFETY: the warp is whole, and nobody else has its rows; a stage is read between its arrival and its release.
    unsafe {
        if at < pages {
            warp::sync_warp(FULL_MASK);
            let asked = block.ask_row(map, lane);
            query::load_narrow::<D>(block.score.q, columns.queries, map, lane);
            if lane < rows {
                columns.kept.at(lane).store(block.kept(asked));
            }
            warp::sync_warp(FULL_MASK);
        }
        let mut page = 0;
        while page < pages {
            if page == at {
                let landed = ring.wait();
                let tokens = if landed.page.tokens == 0 { PAGE_TOKENS } else { landed.page.tokens };
                let mut first = 0;
                while first < tokens {
                    narrow::score::<E, D, KS, 8>(block, item, landed, first, columns);
                    first += 16;
                }
                ring.release();
                at += Tile::<D>::NARROW_WARPS;
            } else {
                ring.skip();
            }
            ring.advance();
            page += 1;
        }
    }
}

/// An item of more rows: warpgroups take turns at its pages.
#[inline(always)]
unsafe fn many_rows<E: Element, const D: usize, const KS: usize>(
    block: &Block,
    item: &WorkItem,
    map: &RowMap,
    mut ring: Ring<D>,
    turn: u32,
    mut pages: u32,
) {
    let padded = map.rows.next_multiple_of(64);
    let tile = block.shared.offset(Tile::<D>::QUERY).cast();
    let mut mine = block.thread / 128 == turn % 2;
    // SAFETY: all consumers are here.
    unsafe {
        // On its way while queries are loaded.
        let asked = block.ask_row(map, block.thread);
        query::load::<D>(block.score.q, tile, map, padded, block.thread);
        if block.thread < Tile::<D>::MAX_ROWS {
            kept::<D>(block).at(block.thread).store(block.kept(asked));
        }
        bulk::fence_proxy_async_shared();
        thread::named_barrier_sync::<1>(CONSUMERS);
        while pages > 0 {
            if mine {
                let page = Page::wait(block, &ring);
                if Tile::<D>::MAX_ROWS > 64 && padded > 64 && page.landed.page.tokens == 0 {
                    page.whole::<E, D, KS>(block, &ring);
                } else {
                    page.in_part::<E, D, KS>(block, item, &ring, padded);
                }
            } else {
                ring.skip();
            }
            mine = !mine;
            ring.advance();
            pages -= 1;
        }
    }
}

/// A page before a warpgroup.
struct Page {
    landed: Landed,
    /// The thread's first.
    token: u32,
}

impl Page {
    /// Waits for the stage.
    #[inline(always)]
    unsafe fn wait<const D: usize>(block: &Block, ring: &Ring<D>) -> Self {
        // SAFETY: the caller's.
        let mut landed = unsafe { ring.wait() };
        // The same for all lanes, which the compiler cannot see.
        // SAFETY: the warp is whole.
        landed.key = unsafe { warp::warp_shuffle_idx(FULL_MASK, landed.key, 0) };
        Self { landed, token: block.thread % 128 / 32 * 16 + block.thread % 32 / 4 }
    }

    /// A page that some rows see in part, 64 rows at a time.
    #[inline(always)]
    unsafe fn in_part<E: Element, const D: usize, const KS: usize>(
        &self,
        block: &Block,
        item: &WorkItem,
        ring: &Ring<D>,
        padded: u32,
    ) {
        let Landed { page, cell, .. } = self.landed;
        // SAFETY: all warps of the warpgroup are here; a stage is read before its release.
        unsafe {
            let mut totals = Totals::new(block, page, cell, self.token);
            let mut row = 0;
            while row < padded {
                let mut s = [0.0f32; 32];
                self.multiply::<E, D, KS>(block, row, &mut s);
                wgmma::wait_group_settle::<0, _>(&mut s);
                if row + 64 == padded {
                    ring.release();
                }
                soft_cap(&mut s, block.logits);
                if page.tokens != 0 {
                    let first = row + block.thread % 4 * 2;
                    hide(&mut s, block, item, page, self.token, first);
                }
                totals.add(&s, block, kept::<D>(block).at(row));
                row += 64;
            }
            totals.store(block, page, cell, self.token);
        }
    }

    /// A page that more than 64 rows see whole: one half of them is multiplied while the other is reduced.
    #[inline(always)]
    unsafe fn whole<E: Element, const D: usize, const KS: usize>(
        &self,
        block: &Block,
        ring: &Ring<D>,
    ) {
        let Landed { page, cell, .. } = self.landed;
        let (mut first, mut second) = ([0.0f32; 32], [0.0f32; 32]);
        // SAFETY: as in `in_part`.
        unsafe {
            self.multiply::<E, D, KS>(block, 0, &mut first);
            self.multiply::<E, D, KS>(block, 64, &mut second);
            let mut totals = Totals::new(block, page, cell, self.token);
            wgmma::wait_group_settle::<1, _>(&mut first);
            soft_cap(&mut first, block.logits);
            totals.add(&first, block, kept::<D>(block));
            wgmma::wait_group_settle::<0, _>(&mut second);
            ring.release();
            soft_cap(&mut second, block.logits);
            totals.add(&second, block, kept::<D>(block).at(64));
            totals.store(block, page, cell, self.token);
        }
    }

    /// Starts the product with 64 rows.
    #[inline(always)]
    unsafe fn multiply<E: Element, const D: usize, const KS: usize>(
        &self,
        block: &Block,
        row: u32,
        s: &mut [f32; 32],
    ) {
        let group = Tile::<D>::GROUP_BYTES;
        let operand =
            |first| Operand { descriptor: Descriptor::new(first, 128, group), step_bytes: 256 };
        let rows: Shared<Row> = block.shared.offset(Tile::<D>::QUERY + row / 8 * group).cast();
        // SAFETY: all warps of the warpgroup are here; page and rows are there.
        unsafe {
            wgmma::fence();
            let (tokens, rows) = (operand(self.landed.key), operand(rows));
            wgmma::mma_shared::<E, false, false, KS, _>(s, tokens, rows, false);
            wgmma::commit_group();
        }
    }
}

/// What is kept of an item's rows.
#[inline(always)]
fn kept<const D: usize>(block: &Block) -> Shared<[u32; 2]> {
    block.shared.offset(Tile::<D>::ROWS).cast()
}
