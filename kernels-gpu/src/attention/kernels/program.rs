//! A block's program: read from shared memory where it fits, else from global memory.

use super::cells::Cells;
use crate::abi::{NONE, PAGE_TOKENS, ProgramHeader, Segment, WorkItem, words_of};
use crate::attention::tile::{COUNTED_SEGMENTS, PROGRAM_BYTES};
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{global, register, warp};

/// Where the program's words are.
#[derive(Clone, Copy)]
pub struct Program {
    /// Shared address of the first [`PROGRAM_BYTES`].
    pub(super) cached: Shared<u32>,
    /// Shared address of the segments' present token counts.
    pub(super) counts: Shared<u32>,
    /// The program in global memory.
    pub(super) words: *const u32,
    /// Node lengths, by slot.
    pub(super) lengths: *const u32,
    /// Of a program of compacted pages where the KV head's rows lie.
    pub(super) cells: Cells,
}

impl Program {
    /// Word `index`.
    #[inline(always)]
    pub(super) unsafe fn word(&self, index: u32) -> u32 {
        // SAFETY: the index lies within the program.
        unsafe {
            if index < PROGRAM_BYTES / 4 {
                self.cached.at(index).load()
            } else {
                global::load_u32(self.words.add(index as usize))
            }
        }
    }

    /// Four words from `index`, a multiple of 4.
    #[inline(always)]
    unsafe fn words4(&self, index: u32) -> [u32; 4] {
        // SAFETY: the index lies within the program, and programs are 16-byte aligned.
        unsafe {
            if index + 4 <= PROGRAM_BYTES / 4 {
                self.cached.at(index).cast::<[u32; 4]>().load()
            } else {
                global::load_v4_u32(self.words.add(index as usize))
            }
        }
    }

    /// [`Program::words4`], the same for all lanes, which the compiler cannot see in a load.
    #[inline(always)]
    unsafe fn uniform4(&self, index: u32) -> [u32; 4] {
        // SAFETY: the warp is whole, the index the caller's.
        unsafe { self.words4(index).map(|word| warp::warp_shuffle_idx(FULL_MASK, word, 0)) }
    }

    /// The program's header.
    #[inline(always)]
    pub(super) unsafe fn header(&self) -> ProgramHeader {
        // SAFETY: every program has a header.
        let [items, segments, words, native] = unsafe { self.uniform4(0) };
        ProgramHeader { items, segments, words, native }
    }

    /// Work item `index`.
    #[inline(always)]
    pub(super) unsafe fn item(&self, index: u32) -> WorkItem {
        let word = words_of::<ProgramHeader>() + index * words_of::<WorkItem>();
        let [query_begin, query_count, segment_begin, segment_count] =
            // SAFETY: the item is one of the program's.
            unsafe { self.uniform4(word) };
        // SAFETY: the item is one of the program's.
        let [partial_slot, row_word, ..] = unsafe { self.uniform4(word + 4) };
        WorkItem {
            query_begin,
            query_count,
            segment_begin,
            segment_count,
            partial_slot,
            row_word,
            format: 0,
            reserved: 0,
        }
    }

    /// Segment `index` of a program with `items` work items.
    #[inline(always)]
    pub(super) unsafe fn segment(&self, items: u32, index: u32) -> Segment {
        let word = words_of::<ProgramHeader>()
            + items * words_of::<WorkItem>()
            + index * words_of::<Segment>();
        // SAFETY: the segment is one of the program's.
        let [page_word, page_count, page_capacity, tokens] = unsafe { self.words4(word) };
        // SAFETY: the segment is one of the program's.
        let [length_slot, first_token, visible, mask] = unsafe { self.words4(word + 4) };
        Segment {
            page_word,
            page_count,
            page_capacity,
            tokens,
            length_slot,
            first_token,
            visible,
            mask,
        }
    }

    /// Length of the growing node that `segment` is of.
    #[inline(always)]
    pub(super) unsafe fn length(&self, segment: &Segment) -> u32 {
        // SAFETY: the slot is a counter's.
        unsafe { global::load_u32(self.lengths.add(segment.length_slot as usize)) }
    }

    /// Tokens that `segment` holds at present.
    #[inline(always)]
    pub(super) unsafe fn tokens(&self, segment: &Segment) -> u32 {
        // SAFETY: a segment of the program's.
        let length = if segment.length_slot == NONE { 0 } else { unsafe { self.length(segment) } };
        segment.tokens_at(length)
    }

    /// Consumer: asks for the present token count of the segment that is this thread's to keep.
    #[inline(always)]
    pub(super) unsafe fn ask_count(&self, header: &ProgramHeader, thread: u32) -> AskedCount {
        if thread < header.segments && thread < COUNTED_SEGMENTS {
            // SAFETY: a segment of the program's.
            unsafe {
                let segment = self.segment(header.items, thread);
                if segment.length_slot == NONE {
                    AskedCount::known(segment.tokens)
                } else {
                    AskedCount {
                        length: self.length(&segment),
                        first_token: segment.first_token,
                        room: segment.page_count * PAGE_TOKENS,
                    }
                }
            }
        } else {
            AskedCount::known(0)
        }
    }

    /// Whether the pages of segment `index` are of the launch's format.
    #[inline(always)]
    pub(super) unsafe fn is_of_format(&self, index: u32) -> bool {
        const NATIVE: u32 = core::mem::offset_of!(ProgramHeader, native) as u32 / 4;
        // SAFETY: every program has a header. Read anew each time, since registers are for the accumulators.
        index >= unsafe { self.word(NATIVE) } >> 16
    }

    /// Tokens of as many pages as the KV head has cells of `segment`, number `index` of a program of compacted pages; those of
    /// [`Program::tokens`] if its pages are native.
    #[inline(always)]
    pub(super) unsafe fn cell_tokens(&self, index: u32, segment: &Segment) -> u32 {
        // SAFETY: a segment of the program's; its page ids are those of cells, if they are of the format.
        unsafe {
            if !self.is_of_format(index) {
                return self.tokens(segment);
            }
            let first = self.cells.at(self.word(segment.page_word));
            PAGE_TOKENS * first.following().min(segment.page_count)
        }
    }

    /// As [`Program::ask_count`], of [`Program::cell_tokens`].
    #[inline(always)]
    pub(super) unsafe fn ask_cells(&self, header: &ProgramHeader, thread: u32) -> AskedCount {
        if thread < header.segments && thread < COUNTED_SEGMENTS {
            // SAFETY: a segment of the program's.
            unsafe {
                AskedCount::known(self.cell_tokens(thread, &self.segment(header.items, thread)))
            }
        } else {
            AskedCount::known(0)
        }
    }

    /// As [`Program::counted_tokens`], after [`Program::ask_cells`].
    #[inline(always)]
    pub(super) unsafe fn counted_cells(&self, items: u32, index: u32) -> u32 {
        // SAFETY: counts were written before the barrier, and the segment is one of the program's.
        unsafe {
            if index < COUNTED_SEGMENTS {
                self.counts.at(index).load()
            } else {
                self.cell_tokens(index, &self.segment(items, index))
            }
        }
    }

    /// As [`Program::pages`], after [`Program::ask_cells`].
    #[inline(always)]
    pub(super) unsafe fn cell_pages(&self, items: u32, item: &WorkItem) -> u32 {
        let mut pages = 0;
        let mut index = item.segment_begin;
        while index < item.segment_begin + item.segment_count {
            // SAFETY: the segment is one of the program's.
            pages += unsafe { self.counted_cells(items, index) }.div_ceil(PAGE_TOKENS);
            index += 1;
        }
        pages
    }

    /// Consumers, together: keeps the counts that [`Program::ask_count`] brought; a barrier has to follow.
    #[inline(always)]
    pub(super) unsafe fn keep_count(&self, header: &ProgramHeader, thread: u32, asked: AskedCount) {
        if thread < header.segments && thread < COUNTED_SEGMENTS {
            // SAFETY: one thread a count.
            unsafe { self.counts.at(thread).store(asked.tokens()) };
        }
    }

    /// Tokens that segment `index` holds at present, after [`Program::keep_count`].
    #[inline(always)]
    pub(super) unsafe fn counted_tokens(&self, items: u32, index: u32) -> u32 {
        // SAFETY: counts were written before the barrier, and the segment is one of the program's.
        unsafe {
            if index < COUNTED_SEGMENTS {
                self.counts.at(index).load()
            } else {
                self.tokens(&self.segment(items, index))
            }
        }
    }

    /// Pages of a work item, after [`Program::keep_count`].
    #[inline(always)]
    pub(super) unsafe fn pages(&self, items: u32, item: &WorkItem) -> u32 {
        let mut pages = 0;
        let mut index = item.segment_begin;
        while index < item.segment_begin + item.segment_count {
            // SAFETY: the segment is one of the program's.
            pages += unsafe { self.counted_tokens(items, index) }.div_ceil(PAGE_TOKENS);
            index += 1;
        }
        // The same for all lanes, which the compiler cannot see.
        // SAFETY: the warp is whole.
        unsafe { warp::warp_shuffle_idx(FULL_MASK, pages, 0) }
    }
}

/// Tokens that a segment holds at present, on their way: what is done before [`AskedCount::tokens`] costs no time of its own.
#[derive(Clone, Copy)]
pub(super) struct AskedCount {
    /// The node's length.
    length: u32,
    /// Of it the segment's first token.
    first_token: u32,
    /// Most tokens that the segment has.
    room: u32,
}

impl AskedCount {
    /// A count that nobody has to wait for.
    #[inline(always)]
    pub(super) fn known(tokens: u32) -> Self {
        Self { length: tokens, first_token: 0, room: u32::MAX }
    }

    /// The count, as [`Segment::tokens_at`] has it.
    #[inline(always)]
    pub(super) fn tokens(&self) -> u32 {
        // Subtracted from where it was asked for, the length would be waited for there.
        let rest = register::late(self.length).saturating_sub(self.first_token);
        if rest < self.room { rest } else { self.room }
    }
}
