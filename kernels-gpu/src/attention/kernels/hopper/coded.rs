//! Pages of other formats on their way into the ring.
//!
//! The producer copies codes, half a page a *slot*, to the memory that the ring of native pages leaves. The warps behind the
//! producer take turns at parts of slots and decode them into the ring, so consumers read pages as always. Native pages of the
//! same program come before them, and go into the ring as they are.
//!
//! ```text
//! ring: S pages | slots of half a page | slot records, reaching up to the query tile
//! ```

use super::ring::Ring;
use crate::abi::NONE;
use crate::attention::kernels::format::{self, Coded, CodedPages, Crew};
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::CONSUMERS;
use crate::attention::tile::hopper::Tile;
use device::bulk::{self, Bytes};
use device::mbarrier::{self, Barrier};
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{Element, warp};

/// Parts of a slot, each a warp's.
const PARTS: u32 = 2;
/// Arrivals that fill a stage of the ring.
pub(super) const FILLERS: u32 = 2 * PARTS;
/// Pieces that a thread decodes at a time: what a thread has registers for.
const BATCH: usize = 4;

/// Most slots: as many as have a record.
const MAX_SLOTS: u32 = 16;
/// Two barriers and three words.
const RECORD_BYTES: u32 = 32;

/// A position in the slots.
#[derive(Clone, Copy)]
pub(super) struct Slots<const D: usize, const S: u32> {
    shared: Shared<u8>,
    bytes: u32,
    count: u32,
    slot: u32,
    phase: u32,
}

impl<const D: usize, const S: u32> Slots<D, S> {
    /// Warps that decode: all behind the producer's.
    const DECODERS: u32 = (Tile::<D>::CODED_THREADS - CONSUMERS) / 32 - 1;

    /// The first slot, in the shared memory that begins at `shared`.
    #[inline(always)]
    pub(super) fn new(shared: Shared<u8>, coded: Coded) -> Self {
        let room = Tile::<D>::QUERY - S * Tile::<D>::PAGE_BYTES;
        // None where the ring has all of the room.
        let room = room.saturating_sub(MAX_SLOTS * RECORD_BYTES);
        let count = (room / coded.half_bytes).min(MAX_SLOTS);
        Self { shared, bytes: coded.half_bytes, count, slot: 0, phase: 0 }
    }

    /// Sets up the barriers; one thread.
    #[inline(always)]
    pub(super) unsafe fn init(mut self) {
        while self.phase == 0 {
            // SAFETY: nobody uses the barriers yet.
            unsafe {
                mbarrier::init(self.full(), 1);
                mbarrier::init(self.empty(), Self::DECODERS);
            }
            self.advance();
        }
    }

    #[inline(always)]
    fn record(&self) -> Shared<u8> {
        self.shared.offset(Tile::<D>::QUERY - (self.slot + 1) * RECORD_BYTES)
    }

    #[inline(always)]
    fn full(&self) -> Barrier {
        Barrier::at(self.record().cast())
    }

    #[inline(always)]
    fn empty(&self) -> Barrier {
        Barrier::at(self.record().offset(8).cast())
    }

    #[inline(always)]
    fn codes(&self) -> Shared<u8> {
        self.shared.offset(S * Tile::<D>::PAGE_BYTES + self.slot * self.bytes)
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.slot += 1;
        if self.slot == self.count {
            self.slot = 0;
            self.phase ^= 1;
        }
    }

    /// Producer: copies a page, K and V, which is to be decoded into the stage of `ring`.
    #[inline(always)]
    pub(super) unsafe fn send(
        &mut self,
        pages: &CodedPages,
        id: u32,
        ring: &Ring<D, S>,
        page: PartialPage,
    ) {
        let bytes = Bytes::new(self.bytes);
        // SAFETY: the page lies in the pool, and a slot is written only when it is empty.
        unsafe {
            let mut source = pages.page(id);
            for _half in 0..2 {
                mbarrier::wait_parity(self.empty(), self.phase ^ 1);
                self.describe(page);
                self.stage().store(ring.position());
                mbarrier::arrive_expect_tx(self.full(), bytes);
                bulk::copy_global_to_shared(self.codes().cast(), source, bytes, self.full());
                self.advance();
                source = source.byte_add(self.bytes as usize);
            }
        }
    }

    /// Producer: says that there are no more pages.
    #[inline(always)]
    pub(super) unsafe fn end(&mut self) {
        // SAFETY: as in `send`.
        unsafe {
            mbarrier::wait_parity(self.empty(), self.phase ^ 1);
            self.describe(PartialPage { tokens: 0, place: NONE });
            mbarrier::arrive(self.full());
        }
    }

    #[inline(always)]
    unsafe fn describe(&self, page: PartialPage) {
        // SAFETY: the slot is the producer's.
        unsafe {
            self.record().offset(16).cast().store(page.tokens);
            self.record().offset(20).cast().store(page.place);
        }
    }

    /// Where the slot says which stage of the ring it is for.
    #[inline(always)]
    fn stage(&self) -> Shared<u32> {
        self.record().offset(24).cast()
    }

    /// Decoder: waits for the slot, and says of which page it is.
    #[inline(always)]
    unsafe fn receive(&self) -> PartialPage {
        // SAFETY: the slot is read after it has arrived.
        unsafe {
            mbarrier::wait_parity(self.full(), self.phase);
            PartialPage {
                tokens: self.record().offset(16).cast().load(),
                place: self.record().offset(20).cast().load(),
            }
        }
    }

    /// Decoder warp: gives the slot back; one lane.
    #[inline(always)]
    unsafe fn release(&self) {
        // SAFETY: one arrival a warp.
        unsafe { mbarrier::arrive(self.empty()) };
    }
}

/// Decoder warp `warp`: decodes its parts of all pages into the ring.
///
/// It receives and gives back every slot, its own or not: a wait tells a round from the next, but not from the one after that.
#[inline(always)]
pub(super) unsafe fn decode<E: Element, const D: usize, const S: u32>(
    shared: Shared<u8>,
    coded: Coded,
    warp: u32,
) {
    let mut slots = Slots::<D, S>::new(shared, coded);
    let lane = warp::lane_id();
    // Whether the slot has V, not K; and which part is this warp's, its slot's if there is such a one.
    let (mut value, mut part) = (false, warp);
    // SAFETY: slots are read between arrival and release, a stage is written while it is empty.
    unsafe {
        loop {
            let page = slots.receive();
            if page.place == NONE {
                return;
            }
            let own = part < PARTS;
            let ring = Ring::<D, S>::at(shared, slots.stage().load());
            if own {
                ring.wait_empty();
                let to = if value { ring.value() } else { ring.key() };
                let crew = Crew { thread: 32 * part + lane, threads: 32 * PARTS };
                format::decode::<E, D, BATCH>(slots.codes(), to, (coded.format, value), crew);
                if !value && crew.thread == 0 {
                    ring.describe(page);
                }
                // `wgmma` reads through the other proxy.
                bulk::fence_proxy_async_shared();
                part += Slots::<D, S>::DECODERS;
            }
            warp::sync_warp(FULL_MASK);
            if lane == 0 {
                slots.release();
                if own {
                    mbarrier::arrive(ring.full());
                }
            }
            part -= PARTS;
            slots.advance();
            value = !value;
        }
    }
}
