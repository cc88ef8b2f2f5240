//! The ring of halves of pages on Hopper.

use super::narrow::Landed;
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::{CONSUMER_WARPS, score::Hopper as Tile};
use device::matrix::Row;
use device::mbarrier::{self, Barrier};
use device::shared::Shared;
use device::warp;
use device::warp::FULL_MASK;

/// A position in the ring of halves of pages.
#[derive(Clone, Copy)]
pub(super) struct Ring<const D: usize> {
    shared: Shared<u8>,
    stage: u32,
    pub(super) phase: u32,
}

impl<const D: usize> Ring<D> {
    #[inline(always)]
    pub(super) fn new(shared: Shared<u8>) -> Self {
        Self { shared, stage: 0, phase: 0 }
    }

    /// Sets up the barriers; one thread.
    #[inline(always)]
    pub(super) unsafe fn init(mut self) {
        while self.phase == 0 {
            // SAFETY: nobody uses the barriers yet.
            unsafe {
                mbarrier::init(self.full(), 1);
                mbarrier::init(self.empty(), CONSUMER_WARPS);
            }
            self.advance();
        }
    }

    #[inline(always)]
    pub(super) fn record(&self) -> Shared<u8> {
        self.shared.offset(Tile::<D>::RECORDS + self.stage * Tile::<D>::RECORD_BYTES)
    }

    /// Completes when the stage's bytes have landed.
    #[inline(always)]
    pub(super) fn full(&self) -> Barrier {
        Barrier::at(self.record().cast())
    }

    /// Completes when the stage may be overwritten.
    #[inline(always)]
    pub(super) fn empty(&self) -> Barrier {
        Barrier::at(self.record().offset(8).cast())
    }

    #[inline(always)]
    pub(super) fn key(&self) -> Shared<Row> {
        self.shared.offset(self.stage * Tile::<D>::HALF_BYTES).cast()
    }

    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.stage += 1;
        if self.stage == Tile::<D>::STAGES {
            self.stage = 0;
            self.phase ^= 1;
        }
    }

    /// The same, `pages` further on.
    #[inline(always)]
    pub(super) fn further(mut self, pages: u32) -> Self {
        let stage = self.stage + pages;
        self.phase ^= stage / Tile::<D>::STAGES % 2;
        self.stage = stage % Tile::<D>::STAGES;
        self
    }

    /// Producer: says what the stage's page is.
    #[inline(always)]
    pub(super) unsafe fn describe(&self, page: PartialPage, cell: u32) {
        let words: Shared<u32> = self.record().offset(16).cast();
        // SAFETY: the stage is the producer's until it says that it is full.
        unsafe {
            words.store(page.tokens);
            words.at(1).store(page.place);
            words.at(2).store(cell);
        }
    }

    /// Consumer: waits for the stage's page.
    #[inline(always)]
    pub(super) unsafe fn wait(&self) -> Landed {
        let words: Shared<u32> = self.record().offset(16).cast();
        // SAFETY: once the stage has arrived its description is there.
        unsafe {
            mbarrier::wait_parity(self.full(), self.phase);
            let page = PartialPage { tokens: words.load(), place: words.at(1).load() };
            Landed { key: self.key(), page, cell: words.at(2).load() }
        }
    }

    /// Consumer warp: gives the stage back.
    #[inline(always)]
    pub(super) unsafe fn release(&self) {
        // SAFETY: the warp is whole; one arrival a warp.
        unsafe {
            warp::sync_warp(FULL_MASK);
            if warp::lane_id() == 0 {
                mbarrier::arrive(self.empty());
            }
        }
    }

    /// Consumer warp: lets a page of another's pass. A wait tells a round from the next, but not from the one after that.
    #[inline(always)]
    pub(super) unsafe fn skip(&self) {
        // SAFETY: as for a page that is read.
        unsafe {
            mbarrier::wait_parity(self.full(), self.phase);
            self.release();
        }
    }
}
