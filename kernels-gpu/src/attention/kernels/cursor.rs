//! The way through a program's pages.

use super::format::Format;
use super::page::PartialPage;
use super::program::Program;
use crate::abi::{NONE, PAGE_TOKENS, ProgramHeader, Segment};
use crate::directory::LinkedCell;
use core::marker::PhantomData;
use device::warp;
use device::warp::FULL_MASK;

/// Tells how many tokens segments hold at present.
pub(super) trait Counts {
    /// Of a program's `segment`, its number `index`; segments are asked for in order.
    ///
    /// # Safety
    /// The segment is one of the program's; the warp is whole.
    unsafe fn tokens(&mut self, index: u32, segment: &Segment) -> u32;
}

/// The counts that a block keeps: after [`Program::keep_count`].
pub(super) struct Kept {
    pub(super) program: Program,
    pub(super) header: ProgramHeader,
}

impl Counts for Kept {
    #[inline(always)]
    unsafe fn tokens(&mut self, index: u32, _segment: &Segment) -> u32 {
        // SAFETY: the caller's.
        unsafe { self.program.counted_tokens(self.header.items, index) }
    }
}

/// The counts of 32 segments at a time, asked for together: growing nodes cost one trip to memory, not one each.
pub(super) struct Asked<F> {
    program: Program,
    header: ProgramHeader,
    /// Of the lane's segment the node's length; of a program of compacted pages its tokens.
    asked: u32,
    format: PhantomData<F>,
}

impl<F: Format> Asked<F> {
    /// Asks for the first of them.
    #[inline(always)]
    pub(super) unsafe fn new(program: Program, header: ProgramHeader) -> Self {
        let mut asked = Self { program, header, asked: 0, format: PhantomData };
        // SAFETY: the caller's.
        unsafe { asked.ask(0) };
        asked
    }

    #[inline(always)]
    unsafe fn ask(&mut self, first: u32) {
        let own = first + warp::lane_id();
        if own < self.header.segments {
            // SAFETY: a segment of the program's.
            unsafe {
                let segment = self.program.segment(self.header.items, own);
                if F::COMPACTED {
                    self.asked = self.program.cell_tokens(own, &segment);
                } else if segment.length_slot != NONE {
                    self.asked = self.program.length(&segment);
                }
            }
        }
    }
}

impl<F: Format> Counts for Asked<F> {
    #[inline(always)]
    unsafe fn tokens(&mut self, index: u32, segment: &Segment) -> u32 {
        // SAFETY: the warp is whole, the segment being the same for all lanes.
        unsafe {
            if index > 0 && index.is_multiple_of(32) {
                self.ask(index);
            }
            // A node that has stopped growing is streamed while the others' lengths are on their way.
            if !F::COMPACTED && segment.length_slot == NONE {
                return segment.tokens;
            }
            let asked = warp::warp_shuffle_idx(FULL_MASK, self.asked, index % 32);
            if F::COMPACTED { asked } else { segment.tokens_at(asked) }
        }
    }
}

/// A place among the program's pages.
pub(super) struct Cursor<C> {
    program: Program,
    counts: C,
    header: ProgramHeader,
    /// Work items begun.
    items: u32,
    /// One past the last item.
    last_item: u32,
    /// One past the segments of the present item.
    end: u32,
    /// What a segment is visible to if the whole item sees it.
    everybody: u32,
    /// Segments begun.
    segments: u32,
    /// Every token of the present segment is seen by every query of its item.
    whole: bool,
    /// Tokens of the present segment from the present page on; 0 before the first page and after the last.
    left: u32,
    /// Word of the present page's id.
    word: u32,
    /// The present page; after [`Cursor::advance_cell`] its cell.
    id: u32,
    /// What the directory says of that cell.
    cell: LinkedCell,
    /// Its segment, and its index within it in the upper half.
    place: u32,
}

impl<C: Counts> Cursor<C> {
    /// Before the first page.
    #[inline(always)]
    pub(super) fn new(program: Program, header: ProgramHeader, counts: C) -> Self {
        Self {
            program,
            counts,
            header,
            items: 0,
            last_item: header.items,
            end: 0,
            everybody: 0,
            segments: 0,
            whole: false,
            left: 0,
            word: 0,
            id: 0,
            cell: LinkedCell { cell: 0, bits: 0 },
            place: 0,
        }
    }

    /// The same, of the items of native pages alone.
    #[inline(always)]
    pub(super) fn native(program: Program, header: ProgramHeader, counts: C) -> Self {
        let last_item = header.native_items();
        Self { last_item, ..Self::new(program, header, counts) }
    }

    /// The same, of the other items alone.
    #[inline(always)]
    pub(super) fn of_format(program: Program, header: ProgramHeader, counts: C) -> Self {
        let (items, segments) = (header.native_items(), header.native_segments());
        Self { items, segments, end: segments, ..Self::new(program, header, counts) }
    }

    /// Moves to the next page.
    #[inline(always)]
    pub(super) unsafe fn advance(&mut self) {
        if self.left > PAGE_TOKENS {
            self.left -= PAGE_TOKENS;
            self.word += 1;
            self.place += 1 << 16;
        } else {
            self.left = 0;
            // SAFETY: as long as there are segments.
            while self.left == 0 && unsafe { self.next_segment() } {}
        }
        if self.left > 0 {
            // SAFETY: the word is one of the segment's page ids.
            self.id = unsafe { self.program.word(self.word) };
        }
    }

    /// Begins the next segment, which may be empty; false after the last.
    #[inline(always)]
    unsafe fn next_segment(&mut self) -> bool {
        while self.segments == self.end {
            if self.items == self.last_item {
                return false;
            }
            // SAFETY: an item of the program's; the warp is whole.
            let item = unsafe { self.program.item(self.items) };
            self.end = item.segment_begin + item.segment_count;
            self.everybody = Segment::pack_visible(0, item.query_count);
            self.items += 1;
        }
        // SAFETY: a segment of the program's.
        unsafe {
            let segment = self.program.segment(self.header.items, self.segments);
            self.left = self.counts.tokens(self.segments, &segment);
            self.whole = segment.mask == NONE && segment.visible == self.everybody;
            self.word = segment.page_word;
        }
        self.place = self.segments;
        self.segments += 1;
        true
    }

    /// The present page.
    #[inline(always)]
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Tokens of the present page, 1 to 64; 0 if there is none.
    #[inline(always)]
    pub(super) fn page_tokens(&self) -> u32 {
        if self.left < PAGE_TOKENS { self.left } else { PAGE_TOKENS }
    }

    /// What the block needs to know of the present page.
    #[inline(always)]
    pub(super) fn describe(&self) -> PartialPage {
        let tokens = self.page_tokens();
        PartialPage {
            tokens: if self.whole && tokens == PAGE_TOKENS { 0 } else { tokens },
            place: self.place,
        }
    }
}

impl Cursor<Kept> {
    /// As [`Cursor::advance`], of a program whose cells are counted: a page of the format is one, a native page is told as one.
    #[inline(always)]
    pub(super) unsafe fn advance_cell(&mut self) {
        if self.left > PAGE_TOKENS {
            self.left -= PAGE_TOKENS;
            self.word += 1;
            self.place += 1 << 16;
        } else {
            self.left = 0;
            // SAFETY: as long as there are segments.
            while self.left == 0 && unsafe { self.next_segment() } {
                // SAFETY: the segment that was begun.
                self.left =
                    unsafe { self.program.counted_cells(self.header.items, self.segments - 1) };
            }
        }
        if self.left > 0 {
            // SAFETY: the word is one of the segment's page ids, which the directory has if they are of the format.
            unsafe {
                let id = self.program.word(self.word);
                self.cell = if self.program.is_of_format(self.segments - 1) {
                    self.program.cells.at(id)
                } else {
                    let cell = self.program.cells.of_page(id);
                    LinkedCell { cell, bits: self.page_tokens() }
                };
                self.id = self.cell.cell;
            }
        }
    }

    /// As [`Cursor::page_tokens`], after [`Cursor::advance_cell`].
    #[inline(always)]
    pub(super) fn rows(&self) -> u32 {
        if self.left > 0 { self.cell.rows() } else { 0 }
    }

    /// As [`Cursor::describe`], after [`Cursor::advance_cell`]: [`CELL_BIASED`](crate::abi::CELL_BIASED) is in the place.
    #[inline(always)]
    pub(super) fn describe_cell(&self) -> PartialPage {
        let rows = self.rows();
        PartialPage {
            tokens: if self.whole && rows == PAGE_TOKENS { 0 } else { rows },
            place: self.place | self.cell.bias_flag(),
        }
    }
}
