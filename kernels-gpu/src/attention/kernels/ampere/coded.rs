//! Pages of other formats on their way into shared memory: codes are copied ahead, half a page a *slot*, and each half is
//! decoded by all threads when its turn comes, over the half before. Native pages of the same program come first (`pages`).
//!
//! ```text
//! half a page, decoded | slots: codes and a record of 16 bytes each
//! ```

use core::marker::PhantomData;

use crate::abi::ProgramHeader;
use crate::attention::kernels::cursor::{Cursor, Kept};
use crate::attention::kernels::format::{self, CodedPages, Crew};
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::tile::{CONSUMERS, ampere::Tile};
use device::matrix::Row;
use device::shared::Shared;
use device::{Element, async_copy, thread};

const RECORD_BYTES: u32 = 16;

/// Slots: what there is room for whatever the format.
const fn slots(head_dim: usize) -> u32 {
    match head_dim {
        64 => 8,
        128 => 4,
        _ => 1,
    }
}

/// The slots, and where the program's pages come from.
pub(super) struct Codes<E, const D: usize> {
    shared: Shared<u8>,
    thread: u32,
    pages: CodedPages,
    /// Slot of the half that is next to be read.
    slot: u32,
    /// The half that was asked for last is a V.
    value: bool,
    /// Pages were asked for.
    begun: bool,
    /// Its page.
    last: Cursor<Kept>,
    kind: PhantomData<E>,
}

impl<E: Element, const D: usize> Codes<E, D> {
    /// Nothing is asked for yet.
    #[inline(always)]
    pub(super) fn new(
        shared: Shared<u8>,
        thread: u32,
        program: Program,
        header: ProgramHeader,
        pages: CodedPages,
    ) -> Self {
        let last = Cursor::of_format(program, header, Kept { program, header });
        Self { shared, thread, pages, slot: 0, value: true, begun: false, last, kind: PhantomData }
    }

    /// Whether [`Codes::start`] was called.
    #[inline(always)]
    pub(super) fn have_begun(&self) -> bool {
        self.begun
    }

    /// Asks for the first pages after those of native items. Called by all threads, which are through with those.
    #[inline(always)]
    pub(super) unsafe fn start(&mut self) {
        self.begun = true;
        for slot in 0..slots(D) {
            // SAFETY: the slots are empty.
            unsafe { self.ask(slot) };
        }
    }

    #[inline(always)]
    fn codes(&self, slot: u32) -> Shared<u8> {
        let bytes = self.pages.coded.half_bytes + RECORD_BYTES;
        self.shared.offset(Tile::<D>::HALF_BYTES + slot * bytes)
    }

    #[inline(always)]
    fn record(&self, slot: u32) -> Shared<u32> {
        self.codes(slot).offset(self.pages.coded.half_bytes).cast()
    }

    /// Asks for the next half.
    #[inline(always)]
    unsafe fn ask(&mut self, slot: u32) {
        self.value = !self.value;
        // SAFETY: all threads move together; nobody reads the slot; the page lies in the pool.
        unsafe {
            if !self.value {
                self.last.advance();
                if self.thread == 0 {
                    let page = self.last.describe();
                    self.record(slot).store(page.tokens);
                    self.record(slot).at(1).store(page.place);
                }
            }
            if self.last.page_tokens() > 0 {
                let bytes = self.pages.coded.half_bytes;
                let offset = if self.value { bytes } else { 0 };
                let source = self.pages.page(self.last.id()).byte_add(offset as usize);
                let to = self.codes(slot).cast::<Row>();
                let mut piece = self.thread;
                while piece < bytes / 16 {
                    async_copy::copy_16(to.at(piece), source.byte_add(piece as usize * 16));
                    piece += CONSUMERS;
                }
            }
        }
        // Without copies too: steps count groups.
        async_copy::commit_group();
    }

    /// Waits until the next half has landed, for all threads, which are through with the half before.
    #[inline(always)]
    unsafe fn await_half(&self) {
        match slots(D) {
            8 => async_copy::wait_group::<7>(),
            4 => async_copy::wait_group::<3>(),
            _ => async_copy::wait_group::<0>(),
        }
        // SAFETY: all threads of the block are here.
        unsafe { thread::sync_threads() };
    }

    /// Decodes the half that has landed, and asks for one in its place.
    #[inline(always)]
    unsafe fn decode(&mut self, value: bool) -> Shared<Row> {
        let to = self.shared.cast();
        // SAFETY: nobody reads the half before; after the barrier nobody reads the slot.
        unsafe {
            let (codes, format) = (self.codes(self.slot), self.pages.coded.format);
            let crew = Crew { thread: self.thread, threads: CONSUMERS };
            format::decode::<E, D, 2>(codes, to, (format, value), crew);
            thread::sync_threads();
            self.ask(self.slot);
        }
        self.slot += 1;
        if self.slot == slots(D) {
            self.slot = 0;
        }
        to
    }

    /// As of native pages: the next page's K, and what the page is.
    #[inline(always)]
    pub(super) unsafe fn next_key(&mut self) -> (Shared<Row>, PartialPage) {
        // SAFETY: the record is read before its slot is given away.
        unsafe {
            self.await_half();
            let record = self.record(self.slot);
            let page = PartialPage { tokens: record.load(), place: record.at(1).load() };
            (self.decode(false), page)
        }
    }

    /// The same page's V.
    #[inline(always)]
    pub(super) unsafe fn next_value(&mut self) -> Shared<Row> {
        // SAFETY: the caller's.
        unsafe {
            self.await_half();
            self.decode(true)
        }
    }
}
