//! Pages of other formats on their way into the ring.
//!
//! The producer copies codes, half a page a *slot*, to the memory that the ring of native pages leaves. The three warps
//! beside the producer take turns at slots and decode them into the ring, so consumers read pages as always.
//!
//! ```text
//! ring: S pages | slots of half a page | slot records, reaching up to the query tile
//! ```

use super::ring::Ring;
use crate::abi::NONE;
use crate::attention::kernels::format::{self, Coded, CodedPages, Crew};
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::hopper::Tile;
use device::bulk::{self, Bytes};
use device::mbarrier::{self, Barrier};
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{Element, warp};

/// Warps that decode, a half page each at a time.
const DECODERS: u32 = 3;
/// Pieces that a thread decodes at a time: enough loads under way for one warp a scheduler.
const BATCH: usize = 4;

/// Most slots: as many as have a record.
const MAX_SLOTS: u32 = 16;
/// Two barriers and two words.
const RECORD_BYTES: u32 = 24;

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
                mbarrier::init(self.empty(), 1);
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

    /// Producer: copies a page, K and V.
    #[inline(always)]
    pub(super) unsafe fn send(&mut self, pages: &CodedPages, id: u32, page: PartialPage) {
        let bytes = Bytes::new(self.bytes);
        // SAFETY: the page lies in the pool, and a slot is written only when it is empty.
        unsafe {
            let mut source = pages.page(id);
            for _half in 0..2 {
                mbarrier::wait_parity(self.empty(), self.phase ^ 1);
                self.describe(page);
                mbarrier::arrive_expect_tx(self.full(), bytes);
                bulk::copy_global_to_shared(self.codes().cast(), source, bytes, self.full());
                self.advance();
                source = source.byte_add(self.bytes as usize);
            }
        }
    }

    /// Producer: says to each decoder that there are no more pages.
    #[inline(always)]
    pub(super) unsafe fn end(&mut self) {
        for _decoder in 0..DECODERS {
            // SAFETY: as in `send`.
            unsafe {
                mbarrier::wait_parity(self.empty(), self.phase ^ 1);
                self.describe(PartialPage { tokens: 0, place: NONE });
                mbarrier::arrive(self.full());
            }
            self.advance();
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

    /// The slot `slots` further on.
    #[inline(always)]
    fn further(mut self, slots: u32) -> Self {
        for _slot in 0..slots {
            self.advance();
        }
        self
    }
}

/// Decoder warp `warp`: decodes every third half page into the ring.
#[inline(always)]
pub(super) unsafe fn decode<E: Element, const D: usize, const S: u32>(
    shared: Shared<u8>,
    coded: Coded,
    warp: u32,
) {
    let mut ring = Ring::<D, S>::new(shared);
    let mut slots = Slots::<D, S>::new(shared, coded);
    // Slots are K, V, K, ...
    let mut value = warp == 1;
    if warp > 0 {
        slots = slots.further(1);
    }
    if warp > 1 {
        slots = slots.further(1);
        ring.advance();
    }
    let lane = warp::lane_id();
    // SAFETY: slots are read between arrival and release, a stage is written while it is empty.
    unsafe {
        loop {
            let page = slots.receive();
            if page.place == NONE {
                return;
            }
            ring.wait_empty();
            let to = if value { ring.value() } else { ring.key() };
            let crew = Crew { thread: lane, threads: 32 };
            format::decode::<E, D, BATCH>(slots.codes(), to, (coded.format, value), crew);
            if lane == 0 && !value {
                ring.describe(page);
            }
            // `wgmma` reads through the other proxy.
            bulk::fence_proxy_async_shared();
            warp::sync_warp(FULL_MASK);
            if lane == 0 {
                mbarrier::arrive(slots.empty());
                mbarrier::arrive(ring.full());
            }
            slots = slots.further(DECODERS);
            ring.advance();
            if value {
                ring.advance();
            }
            value = !value;
        }
    }
}
