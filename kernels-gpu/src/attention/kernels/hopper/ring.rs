//! The ring of pages between the producer warp and the consumers.

use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::{CONSUMER_WARPS, CONSUMERS, hopper::Tile};
use device::matrix::Row;
use device::mbarrier::Barrier;
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{mbarrier, warp};

/// A position in the ring of `S` pages.
#[derive(Clone, Copy)]
pub(super) struct Ring<const D: usize, const S: u32> {
    shared: Shared<u8>,
    /// Stage, and the phase of its barriers in [`PHASE`]: one register beside the accumulators.
    position: u32,
}

const PHASE: u32 = 1 << 31;

/// Whether every thread gives a stage back, not one lane for its warp: racecheck does not follow `bar.warp.sync` there.
const EVERY_THREAD: bool = cfg!(feature = "every-thread-arrives");

/// Arrivals that empty a stage.
pub(super) const RELEASES: u32 = if EVERY_THREAD { CONSUMERS } else { CONSUMER_WARPS };

impl<const D: usize, const S: u32> Ring<D, S> {
    /// The ring's start, in the shared memory that begins at `shared`.
    #[inline(always)]
    pub(super) fn new(shared: Shared<u8>) -> Self {
        Self { shared, position: 0 }
    }

    /// The position that [`Ring::position`] tells.
    #[inline(always)]
    pub(super) fn at(shared: Shared<u8>, position: u32) -> Self {
        Self { shared, position }
    }

    /// What a position in the same ring is made of.
    #[inline(always)]
    pub(super) fn position(&self) -> u32 {
        self.position
    }

    #[inline(always)]
    fn stage(&self) -> u32 {
        self.position & !PHASE
    }

    #[inline(always)]
    fn phase(&self) -> u32 {
        self.position / PHASE
    }

    /// The stage's record.
    #[inline(always)]
    fn record(&self) -> Shared<u8> {
        let records = self.shared.offset(Tile::<D>::RECORDS);
        records.offset(self.stage() * Tile::<D>::RECORD_BYTES)
    }

    /// Barrier that completes when the stage's bytes have landed.
    #[inline(always)]
    pub(super) fn full(&self) -> Barrier {
        Barrier::at(self.record().cast())
    }

    /// Barrier that completes when all consumers are done with the stage.
    #[inline(always)]
    pub(super) fn empty(&self) -> Barrier {
        Barrier::at(self.record().offset(8).cast())
    }

    /// Shared address of K in the stage.
    #[inline(always)]
    pub(super) fn key(&self) -> Shared<Row> {
        self.shared.offset(self.stage() * Tile::<D>::PAGE_BYTES).cast()
    }

    /// Shared address of V in the stage.
    #[inline(always)]
    pub(super) fn value(&self) -> Shared<Row> {
        self.key().offset(Tile::<D>::HALF_BYTES)
    }

    /// Moves to the next stage.
    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.position += 1;
        if self.stage() == S {
            self.position = (self.position & PHASE) ^ PHASE;
        }
    }

    /// Consumer: waits for the stage's page.
    #[inline(always)]
    pub(super) unsafe fn wait_full(&self) {
        // SAFETY: a barrier of the ring's.
        unsafe { mbarrier::wait_parity(self.full(), self.phase()) }
    }

    /// Producer: waits until the stage may be overwritten; passes at once in the first round.
    #[inline(always)]
    pub(super) unsafe fn wait_empty(&self) {
        // SAFETY: a barrier of the ring's.
        unsafe { mbarrier::wait_parity(self.empty(), self.phase() ^ 1) }
    }

    /// Producer: says what the stage's page is, before the barrier that publishes it.
    #[inline(always)]
    pub(super) unsafe fn describe(&self, page: PartialPage) {
        // SAFETY: the stage is the producer's until it says that it is full.
        unsafe {
            self.record().offset(16).cast().store(page.tokens);
            self.record().offset(20).cast().store(page.place);
        }
    }

    /// Consumer: what the stage's page is.
    #[inline(always)]
    pub(super) unsafe fn page(&self) -> PartialPage {
        // SAFETY: the stage has arrived, with its description.
        unsafe {
            PartialPage {
                tokens: self.record().offset(16).cast().load(),
                place: self.record().offset(20).cast().load(),
            }
        }
    }

    /// Where a compacted node's stage says which cell it is.
    #[inline(always)]
    fn cell_word(&self) -> Shared<u32> {
        self.shared.offset(Tile::<D>::CELLS).cast().at(self.stage())
    }

    /// Producer: says which cell the stage's page is, with [`Ring::describe`].
    #[inline(always)]
    pub(super) unsafe fn describe_cell(&self, cell: u32) {
        // SAFETY: the stage is the producer's until it says that it is full.
        unsafe { self.cell_word().store(cell) };
    }

    /// Consumer: which cell the stage's page is, of a compacted node.
    #[inline(always)]
    pub(super) unsafe fn cell(&self) -> u32 {
        // SAFETY: the stage has arrived, with its description.
        unsafe { self.cell_word().load() }
    }

    /// Consumer warp: gives the stage back.
    #[inline(always)]
    pub(super) unsafe fn release(&self) {
        // SAFETY: the warp is whole; as many arrivals as the barrier counts.
        unsafe {
            warp::sync_warp(FULL_MASK);
            if EVERY_THREAD || warp::lane_id() == 0 {
                mbarrier::arrive(self.empty());
            }
        }
    }

    /// Consumer warp: lets one page pass that is another warpgroup's.
    #[inline(always)]
    pub(super) unsafe fn skip(&mut self) {
        // SAFETY: as for a page that is processed.
        unsafe {
            self.wait_full();
            self.release();
        }
        self.advance();
    }
}
