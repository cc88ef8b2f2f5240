//! The producer warp: streams the program's pages into the ring.

use super::coded::{FILLERS, Slots};
use super::ring::Ring;
use super::{Source, after_queries, cells};
use crate::abi::{NONE, PAGE_TOKENS, ProgramHeader, Segment};
use crate::attention::kernels::Attend;
use crate::attention::kernels::cache::{Cache, Pool, PoolPages};
use crate::attention::kernels::cursor::{Asked, Counts};
use crate::attention::kernels::format::{Coded, CodedPages, Format};
use crate::attention::kernels::group_layout::Cores;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::tile::hopper::Tile;
use device::bulk::{self, Bytes};
use device::matrix::Row;
use device::shared::Shared;
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
    // SAFETY: the warp is whole.
    let mut counts = unsafe { Asked::<F>::new(program, header) };
    let mut gate = Gate { header, passed: 0 };
    // SAFETY: the warp is whole.
    unsafe {
        if F::CODED || F::COMPACTED {
            gate.open();
        }
        prefetch::<D>(&program, &header, pages.native);
    }
    let mut index = 0;
    let mut item = 0;
    while item < header.items {
        // SAFETY: an item of the program's.
        let record = unsafe { program.item(item) };
        let everybody = Segment::pack_visible(0, record.query_count);
        let end = record.segment_begin + record.segment_count;
        let is_native = item < header.native_items();
        while index < end {
            // SAFETY: a segment of the program's.
            let segment = unsafe { program.segment(header.items, index) };
            // SAFETY: the warp is whole; segments are taken in order.
            let tokens = unsafe { counts.tokens(index, &segment) };
            let whole = segment.mask == NONE && segment.visible == everybody;
            if lane == 0 || !(F::CODED || F::COMPACTED) {
                // SAFETY: one lane copies; the segment is the program's.
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
                        let run = Run { index, first_word: segment.page_word, tokens, whole };
                        stream::<F, D, S>(&mut ring, &mut gate, &program, run, pages.native);
                    }
                }
            }
            index += 1;
        }
        item += 1;
    }
    // SAFETY: the warp is whole; one lane sends.
    unsafe {
        if !(F::CODED || F::COMPACTED) {
            gate.open();
        }
        if F::CODED && lane == 0 {
            slots.end();
        }
    }
}

/// What pages pass on their way: all but the first wait for the queries.
struct Gate {
    header: ProgramHeader,
    passed: u32,
}

impl Gate {
    /// Lets a page pass; the whole warp comes here.
    #[inline(always)]
    unsafe fn pass(&mut self) {
        if self.passed == 1 {
            // SAFETY: the caller's.
            unsafe { self.open() };
        }
        self.passed += 1;
    }

    /// Waits for the queries, unless that was done.
    #[inline(always)]
    unsafe fn open(&mut self) {
        if self.passed < 2 {
            // SAFETY: the caller's.
            unsafe { after_queries::<Pool>(&self.header) };
            self.passed = 2;
        }
    }
}

/// Brings the first page to the L2 cache, as much of it as there was when the plan was made, if it is a growing node's: its copy
/// has to wait for the length. Others' pages would have left the cache before they are copied.
#[inline(always)]
unsafe fn prefetch<const D: usize>(program: &Program, header: &ProgramHeader, pages: PoolPages) {
    if warp::lane_id() > 0 || header.segments == 0 {
        return;
    }
    // SAFETY: a segment of the program's, and pages of the pool.
    unsafe {
        let segment = program.segment(header.items, 0);
        if segment.length_slot != NONE && segment.tokens > 0 {
            let page = pages.at(program.word(segment.page_word));
            let groups = segment.tokens.min(PAGE_TOKENS).div_ceil(8);
            let bytes = Bytes::new(groups * Tile::<D>::GROUP_BYTES);
            bulk::prefetch_l2(page, bytes);
            bulk::prefetch_l2(page.byte_add(Tile::<D>::HALF_BYTES as usize), bytes);
        }
    }
}

/// Native pages of one segment.
struct Run {
    /// The segment's number.
    index: u32,
    /// Where its page ids begin.
    first_word: u32,
    /// Tokens that it holds at present.
    tokens: u32,
    /// Every query of its item sees all of them.
    whole: bool,
}

/// Streams one segment of native pages: the whole warp where nothing but native pages is, else one lane.
#[inline(always)]
unsafe fn stream<F: Format, const D: usize, const S: u32>(
    ring: &mut Ring<D, S>,
    gate: &mut Gate,
    program: &Program,
    run: Run,
    pages: PoolPages,
) {
    let mut left = run.tokens;
    let mut page = 0;
    while left > 0 {
        let here = if left < PAGE_TOKENS { left } else { PAGE_TOKENS };
        // SAFETY: the page lies in the pool; one lane copies.
        unsafe {
            if !(F::CODED || F::COMPACTED) {
                gate.pass();
            }
            if warp::lane_id() == 0 {
                let source = pages.at(program.word(run.first_word + page));
                let tokens = if run.whole && here == PAGE_TOKENS { 0 } else { here };
                let place = run.index | page << 16;
                copy::<F, D, S>(ring, source, here, PartialPage { tokens, place });
            }
        }
        ring.advance();
        left -= here;
        page += 1;
    }
}

/// Copies the `tokens` of a page at `source` to the ring.
#[inline(always)]
unsafe fn copy<F: Format, const D: usize, const S: u32>(
    ring: &Ring<D, S>,
    source: *const Row,
    tokens: u32,
    page: PartialPage,
) {
    // SAFETY: the page is the caller's, and a stage is written only when it is empty.
    unsafe {
        ring.wait_empty();
        ring.describe(page);
        if F::COMPACTED {
            ring.describe_cell(NONE);
        }
        if F::CODED {
            // Of a page that is decoded there is an arrival a part.
            for _ in 1..FILLERS {
                mbarrier::arrive(ring.full());
            }
        }
        if tokens > PAGE_TOKENS - 8 {
            let bytes = Bytes::new(Tile::<D>::PAGE_BYTES);
            mbarrier::arrive_expect_tx(ring.full(), bytes);
            bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
        } else {
            let bytes = Bytes::new(tokens.div_ceil(8) * Tile::<D>::GROUP_BYTES);
            let values = source.byte_add(Tile::<D>::HALF_BYTES as usize);
            mbarrier::arrive_expect_tx(ring.full(), bytes * 2);
            bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
            bulk::copy_global_to_shared(ring.value(), values, bytes, ring.full());
        }
    }
}
