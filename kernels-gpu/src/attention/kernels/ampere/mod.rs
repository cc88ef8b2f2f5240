//! `attend` on Ampere and what follows it: `mma.sync`, `cp.async`, no roles.
//!
//! All eight warps load the program's pages (`pages`) and compute. A work item's rows are cut into tiles of 16, a
//! warp each; where there are fewer tiles than warps, neighbouring warps have the same rows and share a page's tokens,
//! each with a running softmax of its own, and their results are joined at the item's end.

mod coded;
mod pages;

use super::Attend;
use super::block::{Block, Work};
use super::cache::{self, Cache};
use super::cells::Cells;
use super::finish::{Exchange, join, store_rows};
use super::format::{Coded, CodedPages, Format};
use super::group_layout::Cores;
use super::program::Program;
use super::query;
use super::rows::{Logits, add_biases, hide, soft_cap};
use super::sink::{Sink, inverse};
use super::warp_tile::WarpTile;
use crate::attention::tile::{PROGRAM_BYTES, ampere::Tile, group_bytes};
use coded::Codes;
use device::shared::{Shared, dynamic_shared_mem};
use device::{Element, global, register, thread, warp};
use pages::Pages;

/// One block of `attend` over pages of `cache`, or of format `F`, of which `coded` says more. `KS = D / 16`, `NT = D / 8` for
/// head dimension `D`.
///
/// # Safety
/// Blocks have [`THREADS`](crate::attention::tile::ampere::THREADS) threads and [`Tile::SHARED_BYTES`] of dynamic
/// shared memory ([`Tile::COMPACTED_SHARED_BYTES`] for compacted nodes). The pointers are valid for what the plan and the sizes say; the plan's page ids, slots and masks lie
/// within pool, lengths and partials, and its segments lie in program order, each in one work item. Items are of native pages, or of the format,
/// whose pages are full; those of native pages come first.
#[inline(always)]
pub unsafe fn attend<
    E: Element,
    F: Format,
    C: Cache,
    const D: usize,
    const KS: usize,
    const NT: usize,
>(
    a: Attend,
    cache: C,
    coded: Coded,
) {
    let base = dynamic_shared_mem::<u8>();
    let kv_head = thread::block_idx_y();
    let thread_index = thread::thread_idx_x();
    // SAFETY: the caller's; all threads go the same way.
    unsafe {
        let words = a.program(thread::block_idx_x());
        load_program(base.offset(Tile::<D>::PROGRAM).cast(), words, a.stride, thread_index);
        thread::sync_threads();
        let program = Program {
            cached: base.offset(Tile::<D>::PROGRAM).cast(),
            counts: base.offset(Tile::<D>::COUNTS).cast(),
            words,
            lengths: a.lengths,
            cells: Cells::of::<F>(&coded, a.kv_heads, kv_head),
        };
        let header = program.header();
        let tokens = if F::COMPACTED {
            program.ask_cells(&header, thread_index)
        } else {
            program.ask_count(&header, thread_index)
        };
        program.keep_count(&header, thread_index, tokens);
        thread::sync_threads();
        let block = Block::new(&a, base, thread_index, warp::warp_id(), kv_head, coded.biases);
        let of_head = cache.pages::<D>(&a, kv_head);
        let mut pages = Pages::<E, _, D>::new::<F>(base, thread_index, program, header, of_head);
        let of_format = CodedPages::new::<D>(&a, kv_head, coded);
        let mut codes = Codes::<E, D>::new(base, thread_index, program, header, of_format);
        pages.start();
        let mut index = 0;
        while index < header.items {
            let item = program.item(index);
            let map = block.row_map(&item, program);
            if index > 0 {
                // The last item's epilogue still reads the query tile.
                thread::sync_threads();
            }
            if F::CODED && index == header.native_items() {
                codes.start();
            }
            let tile = base.offset(Tile::<D>::QUERY).cast();
            // As many as all warps' tiles have.
            let padded = map.rows.next_power_of_two().max(32);
            query::load::<D>(a.q, tile, &map, padded, thread_index);
            thread::sync_threads();
            let work = Work {
                block: &block,
                program,
                items: header.items,
                index,
                pages: if F::COMPACTED {
                    program.cell_pages(header.items, &item)
                } else {
                    program.pages(header.items, &item)
                },
            };
            if map.rows <= 32 {
                run::<E, F, _, D, KS, NT, 8, 4>(&work, &mut pages, &mut codes, map.rows);
            } else if map.rows <= 64 {
                run::<E, F, _, D, KS, NT, 16, 2>(&work, &mut pages, &mut codes, map.rows);
            } else if Tile::<D>::MAX_ROWS > 64 {
                run::<E, F, _, D, KS, NT, 32, 1>(&work, &mut pages, &mut codes, map.rows);
            }
            index += 1;
        }
    }
}

/// Fetches the program's beginning.
#[inline(always)]
pub(super) unsafe fn load_program(
    cached: Shared<[u32; 4]>,
    words: *const u32,
    stride: u32,
    thread: u32,
) {
    let bytes = (stride * 4).min(PROGRAM_BYTES);
    if thread * 16 < bytes {
        // SAFETY: programs are `stride` words long, a multiple of 4, and 16-byte aligned.
        unsafe {
            let piece = global::load_v4_u32(words.add(thread as usize * 4));
            cached.at(thread).store(piece);
        }
    }
}

/// Processes all pages of an item: `PARTS` warps a row tile, each with `S` logits a thread, `S PARTS = 32`.
#[inline(always)]
unsafe fn run<
    E: Element,
    F: Format,
    P: cache::Pages,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const S: usize,
    const PARTS: usize,
>(
    work: &Work,
    pages: &mut Pages<E, P, D>,
    codes: &mut Codes<E, D>,
    rows: u32,
) {
    let block = work.block;
    let row_tile = block.warp / PARTS as u32;
    let first_token = block.warp % PARTS as u32 * 2 * S as u32;
    let own = first_token / 8 * group_bytes(D);
    let lane = block.thread % 32;
    let coded = F::CODED && codes.have_begun();
    // Tiles past the item's last row take part in loads and barriers only.
    let active = row_tile * 16 < rows;
    let query = block.shared.offset(Tile::<D>::QUERY + row_tile * 2 * group_bytes(D));
    // SAFETY: all threads go through the item's pages together; a page is read between its arrival and the next step.
    unsafe {
        let mut tile = WarpTile::<KS, NT>::new::<D>(query.cast());
        let mut left = work.pages;
        while left > 0 {
            let mut p = [0.0f32; S];
            let (key, page) = if coded { codes.next_key() } else { pages.next_key() };
            if active {
                p = tile.logits::<E, Cores, D, S>(key.offset(own));
                soft_cap(&mut p, block.logits);
                if F::COMPACTED {
                    let first = first_token + lane % 4 * 2;
                    add_biases(&mut p, block, page, pages.cell(), first);
                }
                if page.tokens != 0 {
                    let first = first_token + lane % 4 * 2;
                    hide(&mut p, work, page, row_tile * 16 + lane / 4, first);
                }
                let factor = if F::COMPACTED {
                    tile.rows.update(&mut p, Logits::SCALED)
                } else {
                    tile.rows.update(&mut p, block.logits)
                };
                tile.rescale(factor);
            }
            let value = if coded { codes.next_value() } else { pages.next_value() };
            if active {
                tile.weigh::<E, Cores, D, S>(&p, value.offset(own));
            }
            left -= 1;
        }
        let sink = work.sink();
        if PARTS == 1 {
            store::<E, D, KS, NT>(tile, &sink, register::late(row_tile * 16 + lane / 4));
            return;
        }
        let exchange = Exchange {
            statistics: block.shared.offset(Tile::<D>::STATISTICS).cast(),
            outputs: block.shared.offset(Tile::<D>::QUERY).cast(),
        };
        join::<E, D, KS, NT, PARTS>(tile, block, exchange, &sink);
    }
}

/// Stores the results of a warp that has its rows alone.
#[inline(always)]
unsafe fn store<E: Element, const D: usize, const KS: usize, const NT: usize>(
    mut tile: WarpTile<KS, NT>,
    sink: &Sink<D>,
    row: u32,
) {
    // SAFETY: the warp is whole, and no other has its rows.
    unsafe {
        tile.rows.reduce();
        let scale = tile.rows.sum.map(inverse);
        tile.rescale(Some(scale));
        store_rows::<E, D>(&tile.rows, sink, row, |j, e| [tile.o[j][2 * e], tile.o[j][2 * e + 1]]);
    }
}
