//! The pages' way into shared memory, across segments and work items, without a producer of its own.
//!
//! There is room for `STAGES` pages. Half a page is a step: K for the logits, then V for the output. Each step waits for
//! its half, passes the block's barrier, and asks for the half that takes the place of the step before, which nobody
//! reads any more; so all of the room but what is being read is always under way:
//!
//! ```text
//! step        K(i)                   V(i)                   K(i + 1)
//! asks for    V(i + STAGES - 1)      K(i + STAGES)          V(i + STAGES)
//! in place of V(i - 1)               K(i)                   V(i)
//! ```

use core::marker::PhantomData;

use crate::abi::ProgramHeader;
use crate::attention::kernels::cache;
use crate::attention::kernels::cursor::{Cursor, Kept};
use crate::attention::kernels::format::{Format, token_of};
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::program::Program;
use crate::attention::tile::{CONSUMERS, ampere::Tile};
use crate::cache::{NAN, is_finite};
use device::matrix::Row;
use device::shared::Shared;
use device::{Element, async_copy, thread};

/// Pieces of which a thread asks for the blocks together.
const BATCH: usize = 4;

/// The stages, and where the program's pages come from.
pub(super) struct Pages<E, P, const D: usize> {
    shared: Shared<u8>,
    thread: u32,
    /// The KV head's pages.
    pages: P,
    /// Stage of the page that is next to be read.
    stage: u32,
    /// The page that was asked for last.
    last: Cursor<Kept>,
    kind: PhantomData<E>,
}

impl<E: Element, P: cache::Pages, const D: usize> Pages<E, P, D> {
    /// Nothing is asked for yet.
    #[inline(always)]
    pub(super) fn new<F: Format>(
        shared: Shared<u8>,
        thread: u32,
        program: Program,
        header: ProgramHeader,
        pages: P,
    ) -> Self {
        let counts = Kept { program, header };
        let last = if F::CODED {
            Cursor::native(program, header, counts)
        } else {
            Cursor::new(program, header, counts)
        };
        Self { shared, thread, pages, stage: 0, last, kind: PhantomData }
    }

    /// Asks for the first pages, of a program with codes those of its native items. Called by all threads once program and token counts are there.
    #[inline(always)]
    pub(super) unsafe fn start(&mut self) {
        for stage in 0..Tile::<D>::STAGES {
            // SAFETY: the stages are empty. The last one's V is asked for in the first step.
            unsafe {
                self.load_key(stage);
                if stage + 1 < Tile::<D>::STAGES {
                    self.load_value(stage);
                }
            }
        }
    }

    /// Waits for the next page's K: its shared address, and what the page is. All threads call it, when they are
    /// through with the V before.
    #[inline(always)]
    pub(super) unsafe fn next_key(&mut self) -> (Shared<Row>, PartialPage) {
        let freed = if self.stage == 0 { Tile::<D>::STAGES - 1 } else { self.stage - 1 };
        // SAFETY: after the barrier nobody reads the V before; the record was written before it.
        unsafe {
            if !P::NATIVE && self.record(self.stage).load() != 0 {
                self.await_page();
                self.keep_finite(self.stage);
            }
            self.await_half();
            self.load_value(freed);
            let record = self.record(self.stage);
            let page = PartialPage { tokens: record.load(), place: record.at(1).load() };
            (self.key(self.stage), page)
        }
    }

    /// Waits for the same page's V: its shared address. All threads call it, when they are through with its K and
    /// its record.
    #[inline(always)]
    pub(super) unsafe fn next_value(&mut self) -> Shared<Row> {
        let value = self.key(self.stage).offset(Tile::<D>::HALF_BYTES);
        // SAFETY: after the barrier nobody reads the page's K, nor its record.
        unsafe {
            self.await_half();
            self.load_key(self.stage);
        }
        self.stage += 1;
        if self.stage == Tile::<D>::STAGES {
            self.stage = 0;
        }
        value
    }

    #[inline(always)]
    fn key(&self, stage: u32) -> Shared<Row> {
        self.shared.offset(stage * Tile::<D>::PAGE_BYTES).cast()
    }

    #[inline(always)]
    fn record(&self, stage: u32) -> Shared<u32> {
        let records = self.shared.offset(Tile::<D>::RECORDS);
        records.offset(stage * Tile::<D>::RECORD_BYTES).cast()
    }

    #[inline(always)]
    fn cell_word(&self, stage: u32) -> Shared<u32> {
        self.shared.offset(Tile::<D>::CELLS).cast().at(stage)
    }

    /// Of compacted nodes, the cell of the page whose K was waited for last; before its V is.
    #[inline(always)]
    pub(super) unsafe fn cell(&self) -> u32 {
        // SAFETY: written with the page's record.
        unsafe { self.cell_word(self.stage).load() }
    }

    /// Waits until the next half has landed, for all threads. Of the halves asked for all but it may be under way.
    #[inline(always)]
    unsafe fn await_half(&self) {
        match Tile::<D>::STAGES {
            4 => async_copy::wait_group::<6>(),
            2 => async_copy::wait_group::<2>(),
            _ => async_copy::wait_group::<0>(),
        }
        // SAFETY: all threads of the block are here.
        unsafe { thread::sync_threads() };
    }

    /// Waits until this thread's pieces of the next page have landed, K and V: of several stages, so that its V was asked for.
    #[inline(always)]
    fn await_page(&self) {
        match Tile::<D>::STAGES {
            4 => async_copy::wait_group::<5>(),
            _ => async_copy::wait_group::<1>(),
        }
    }

    /// Where eight dims of V are not finite, keeps zeros, and NaN in K, as in a cache of ours (`cache::non_finite`): of a
    /// page that not every query sees.
    #[inline(always)]
    unsafe fn keep_finite(&self, stage: u32) {
        for i in 0..Tile::<D>::HALF_BYTES / (16 * CONSUMERS) {
            let key = self.key(stage).at(self.thread + i * CONSUMERS).cast::<[u32; 4]>();
            let value = key.offset(Tile::<D>::HALF_BYTES);
            // SAFETY: the pieces are this thread's, and have landed; nobody else reads them before the barrier.
            unsafe {
                if !is_finite::<E>(value.load()) {
                    value.store([0; 4]);
                    key.store(NAN);
                }
            }
        }
    }

    /// Moves to the program's next page and asks for its K.
    #[inline(always)]
    unsafe fn load_key(&mut self, stage: u32) {
        // SAFETY: all threads move together; nobody reads the stage's K and record.
        unsafe {
            if P::CELLS {
                self.last.advance_cell();
            } else {
                self.last.advance();
            }
            if self.thread == 0 {
                let page = if P::CELLS { self.last.describe_cell() } else { self.last.describe() };
                self.record(stage).store(page.tokens);
                self.record(stage).at(1).store(page.place);
                if P::CELLS {
                    self.cell_word(stage).store(self.last.id());
                }
            }
            self.load_half::<0>(self.key(stage));
        }
    }

    /// Asks for the V of the page whose K was asked for last.
    #[inline(always)]
    unsafe fn load_value(&self, stage: u32) {
        // SAFETY: nobody reads the stage's V.
        unsafe { self.load_half::<1>(self.key(stage).offset(Tile::<D>::HALF_BYTES)) };
    }

    /// Asks for K (half 0) or V (half 1) of the page; tokens past its last are zeros, for 0 x NaN is NaN.
    #[inline(always)]
    unsafe fn load_half<const HALF: usize>(&self, destination: Shared<Row>) {
        let tokens = if P::CELLS { self.last.rows() } else { self.last.page_tokens() };
        if tokens > 0 {
            let piece = |i: usize| self.thread + i as u32 * CONSUMERS;
            let token = |i: usize| token_of::<D>(piece(i));
            // A thread's pieces: 2, 4 or 8.
            let count = (Tile::<D>::HALF_BYTES / (16 * CONSUMERS)) as usize;
            let mut first = 0;
            while first < count {
                let batch = count.min(BATCH);
                let mut blocks = [0; BATCH];
                for i in 0..batch {
                    if !P::NATIVE && token(first + i) < tokens {
                        // SAFETY: the page has the token.
                        blocks[i] = unsafe { self.pages.block(self.last.id(), token(first + i)) };
                    }
                }
                for i in 0..batch {
                    let (piece, token) = (piece(first + i), token(first + i));
                    let place = destination.at(piece);
                    // SAFETY: the piece lies within the stage and the page, which lies in the cache.
                    unsafe {
                        if token < tokens {
                            let at = (blocks[i], token);
                            let source = self.pages.piece::<D>(HALF, self.last.id(), at, piece);
                            async_copy::copy_16(place, source);
                        } else {
                            place.cast().store([0u32; 4]);
                        }
                    }
                }
                first += batch;
            }
        }
        // Without copies too: steps count groups.
        async_copy::commit_group();
    }
}
