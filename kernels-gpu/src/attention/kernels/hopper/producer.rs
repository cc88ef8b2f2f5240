//! The producer warp: streams the program's pages into the ring.

use super::coded::{FILLERS, Slots};
use super::ring::Ring;
use super::{Source, cells};
use crate::abi::{NONE, PAGE_TOKENS, Segment};
use crate::attention::kernels::Attend;
use crate::attention::kernels::cache::{Cache, Pool, PoolPages};
use crate::attention::kernels::format::{Coded, CodedPages, Format};
use crate::attention::kernels::group_layout::Cores;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::tile::hopper::Tile;
use device::bulk::{self, Bytes};
use device::matrix::Row;
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{mbarrier, warp};

/// Of a launch without codes nobody looks at the slots; a size has to be there.
const ANY: Coded = Coded { half_bytes: 1, per_slab: 1, ..Coded::NATIVE };

impl Source for Pool {
    type Layout = Cores;
    const FINITE: bool = true;
    const PRODUCERS: u32 = 1;

    #[inline(always)]
    unsafe fn produce<F: Format, const D: usize, const S: u32>(
        self,
        a: &Attend,
        _producer: u32,
        kv_head: u32,
        coded: Coded,
        shared: Shared<u8>,
        program: Program,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let pages = Sources {
                native: self.pages::<D>(a, kv_head),
                codes: CodedPages::new::<D>(a, kv_head, coded),
                cells: a.pool.cast(),
            };
            produce::<F, D, S>(shared, program, pages);
        }
    }
}

/// Where pages come from.
struct Sources {
    native: PoolPages,
    codes: CodedPages,
    /// The layer's first cell.
    cells: *const Row,
}

/// Streams every page of the program, in program order.
#[inline(always)]
unsafe fn produce<F: Format, const D: usize, const S: u32>(
    shared: Shared<u8>,
    program: Program,
    pages: Sources,
) {
    let mut ring = Ring::<D, S>::new(shared);
    let mut slots = Slots::<D, S>::new(shared, if F::CODED { pages.codes.coded } else { ANY });
    let lane = warp::lane_id();
    // SAFETY: the program is the caller's.
    let header = unsafe { program.header() };
    let mut tokens = 0;
    let mut index = 0;
    let mut item = 0;
    while item < header.items {
        // SAFETY: an item of the program's.
        let record = unsafe { program.item(item) };
        let everybody = Segment::pack_visible(0, record.query_count);
        let end = record.segment_begin + record.segment_count;
        let is_native = item < header.native_items();
        while index < end {
            if index % 32 == 0 {
                // 32 lengths are asked for at once: growing nodes cost one trip to memory, not one each.
                tokens = if index + lane < header.segments {
                    // SAFETY: a segment of the program's.
                    unsafe {
                        let segment = program.segment(header.items, index + lane);
                        if F::COMPACTED {
                            program.cell_tokens(index + lane, &segment)
                        } else {
                            program.tokens(&segment)
                        }
                    }
                } else {
                    0
                };
            }
            // SAFETY: a segment of the program's.
            let segment = unsafe { program.segment(header.items, index) };
            // A node that has stopped growing is streamed while the others' lengths are on their way.
            let tokens = if !F::COMPACTED && segment.length_slot == NONE {
                segment.tokens
            } else {
                // SAFETY: the warp is whole, the segment being the same for all lanes.
                unsafe { warp::warp_shuffle_idx(FULL_MASK, tokens, index % 32) }
            };
            if lane == 0 {
                let whole = segment.mask == NONE && segment.visible == everybody;
                // SAFETY: one lane streams; the segment is the program's.
                unsafe {
                    if F::CODED && !is_native {
                        let mut page = 0;
                        while page * PAGE_TOKENS < tokens {
                            let id = program.word(segment.page_word + page);
                            let tokens = if whole { 0 } else { PAGE_TOKENS };
                            let place = index | page << 16;
                            slots.send(&pages.codes, id, &ring, PartialPage { tokens, place });
                            ring.advance();
                            page += 1;
                        }
                    } else if F::COMPACTED && !is_native {
                        let first = program.word(segment.page_word);
                        let places = first..first + tokens / PAGE_TOKENS;
                        cells::stream(&mut ring, program.cells, places, index, whole, pages.cells);
                    } else {
                        let first = segment.page_word;
                        stream::<F, D, S>(
                            &mut ring,
                            &program,
                            first,
                            tokens,
                            index,
                            whole,
                            pages.native,
                        );
                    }
                }
            }
            index += 1;
        }
        item += 1;
    }
    if F::CODED && lane == 0 {
        // SAFETY: one lane sends.
        unsafe { slots.end() };
    }
}

/// Streams one segment of native pages.
#[inline(always)]
unsafe fn stream<F: Format, const D: usize, const S: u32>(
    ring: &mut Ring<D, S>,
    program: &Program,
    first_word: u32,
    tokens: u32,
    segment: u32,
    whole: bool,
    pages: PoolPages,
) {
    let mut left = tokens;
    let mut page = 0;
    while left > 0 {
        let here = if left < PAGE_TOKENS { left } else { PAGE_TOKENS };
        let whole = whole && here == PAGE_TOKENS;
        // SAFETY: the page lies in the pool, and a stage is written only when it is empty.
        unsafe {
            let offset = program.word(first_word + page) as u64 * pages.stride;
            let source = pages.first.byte_add(offset as usize);
            ring.wait_empty();
            ring.describe(PartialPage {
                tokens: if whole { 0 } else { here },
                place: segment | page << 16,
            });
            if F::COMPACTED {
                ring.describe_cell(NONE);
            }
            if F::CODED {
                // Of a page that is decoded there is an arrival a part.
                for _ in 1..FILLERS {
                    mbarrier::arrive(ring.full());
                }
            }
            if here > PAGE_TOKENS - 8 {
                let bytes = Bytes::new(Tile::<D>::PAGE_BYTES);
                mbarrier::arrive_expect_tx(ring.full(), bytes);
                bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
            } else {
                let bytes = Bytes::new(here.div_ceil(8) * Tile::<D>::GROUP_BYTES);
                let values = source.byte_add(Tile::<D>::HALF_BYTES as usize);
                mbarrier::arrive_expect_tx(ring.full(), bytes * 2);
                bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
                bulk::copy_global_to_shared(ring.value(), values, bytes, ring.full());
            }
        }
        ring.advance();
        left -= here;
        page += 1;
    }
}
