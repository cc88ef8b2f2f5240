//! What the blocks of a launch share.

use std::collections::{BTreeMap, HashMap};
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use bytemuck::Zeroable;

use crate::emulator::clock::{Agents, Joins, Released, View};
use crate::emulator::launch::Launch;
use crate::emulator::memory::Memory;
use crate::emulator::register::share;
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::schedule::{Schedule, Step};
use crate::emulator::shadow::Access;
use crate::emulator::span::{Span, site_bits};
use crate::ordering::{Order, Scope};

/// A launch under way.
pub(crate) struct Grid<'m> {
    pub(crate) memory: &'m Memory,
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) registers: u32,
    pub(crate) seed: u64,
    /// Started before the kernels it depends on were complete.
    pub(crate) dependent: bool,
    /// Matrix loads may read what nothing has written.
    pub(crate) poison_matrix_reads: bool,
    /// Reports say how their block came to where it is.
    pub(crate) record: bool,
    replay: Option<Schedule>,
    /// Counts what could end somebody's polling.
    pub(crate) progress: AtomicU64,
    shadows: Vec<Box<[Granule]>>,
    /// At each address.
    released: Mutex<HashMap<u64, ReleasedBy>>,
}

/// Who last wrote and read a granule of global memory. Of several readers one is remembered.
struct Granule {
    writer: AtomicU64,
    writer_site: AtomicU64,
    reader: AtomicU64,
    reader_site: AtomicU64,
}

// SAFETY: all-zero atomics are valid.
unsafe impl Zeroable for Granule {}

/// What was released somewhere, by block, and whether for that block alone.
type ReleasedBy = BTreeMap<(u32, bool), Released>;

/// Beside a writer's site, which is aligned: the write was atomic.
const ATOMIC: u64 = 1;

/// What an atomic operation does for the order of others.
#[derive(Clone, Copy)]
pub(crate) struct Synchronisation {
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    /// It reads, and so may acquire.
    pub(crate) reads: bool,
    /// What others released there stays: it is a read and a write in one.
    pub(crate) keeps: bool,
}

/// `block | agent | epoch` in 20, 12 and 32 bits; 0 is nobody, since epochs start at 1.
#[derive(Clone, Copy)]
struct Who(u64);

impl Who {
    fn new(block: u32, access: &Access<'_>) -> Self {
        Self(u64::from(block) << 44 | u64::from(access.agent) << 32 | u64::from(access.epoch))
    }

    fn block(self) -> u32 {
        (self.0 >> 44) as u32
    }

    fn agent(self) -> u16 {
        (self.0 >> 32 & 0xfff) as u16
    }

    fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// Whether this access happened before `access` of `block`.
    #[inline]
    fn precedes(self, block: u32, access: &Access<'_>) -> bool {
        let (agent, epoch) = (self.agent(), self.epoch());
        if self.0 == 0 {
            true
        } else if self.block() != block {
            access.view.sees_foreign(self.block(), agent, epoch)
        } else {
            (agent == access.agent && epoch <= access.epoch) || access.view.sees(agent, epoch)
        }
    }
}

impl<'m> Grid<'m> {
    pub(crate) fn new(memory: &'m Memory, launch: &Launch) -> Self {
        let shadow = |granules| bytemuck::zeroed_slice_box(granules);
        Self {
            memory,
            blocks: launch.blocks,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            registers: launch.registers.unwrap_or(share(launch.threads)),
            seed: launch.seed,
            dependent: launch.dependent,
            poison_matrix_reads: launch.poison_matrix_reads,
            record: launch.record,
            replay: launch.replay.clone(),
            progress: AtomicU64::new(0),
            shadows: memory.buffers().iter().map(|buffer| shadow(buffer.granules())).collect(),
            released: Mutex::default(),
        }
    }

    /// The steps that block number `block` is to take, latest first.
    pub(crate) fn replay_of(&self, block: u32) -> Vec<Step> {
        let replay = self.replay.iter().filter(|schedule| schedule.block == block);
        replay.flat_map(|schedule| schedule.steps.iter().rev().copied()).collect()
    }

    /// Notes something that could end somebody's polling.
    pub(crate) fn note_progress(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// Records a read by an agent of `block`.
    #[inline]
    pub(crate) fn read(&self, span: &Span<'_>, block: u32, access: &Access<'_>) -> Checked {
        if span.is_constant() {
            return Ok(());
        }
        span.check_written()?;
        let who = Who::new(block, access);
        for granule in &self.shadows[span.index][span.granules()] {
            let writer = Who(granule.writer.load(Relaxed));
            if !writer.precedes(block, access) {
                let site = granule.writer_site.load(Relaxed);
                return Err(self.race(span, block, access, ["reads", "wrote"], writer, site));
            }
            granule.reader_site.store(site_bits(access.site), Relaxed);
            granule.reader.store(who.0, Relaxed);
        }
        Ok(())
    }

    /// Records a write by an agent of `block`.
    #[inline]
    pub(crate) fn write(&self, span: &Span<'_>, block: u32, access: &Access<'_>) -> Checked {
        span.check_writable()?;
        let who = Who::new(block, access);
        for granule in &self.shadows[span.index][span.granules()] {
            let writer = Who(granule.writer.load(Relaxed));
            if !writer.precedes(block, access) {
                let site = granule.writer_site.load(Relaxed);
                return Err(self.race(span, block, access, ["writes", "wrote"], writer, site));
            }
            let reader = Who(granule.reader.load(Relaxed));
            if !reader.precedes(block, access) {
                let site = granule.reader_site.load(Relaxed);
                return Err(self.race(span, block, access, ["writes", "read"], reader, site));
            }
            granule.writer_site.store(site_bits(access.site), Relaxed);
            granule.writer.store(who.0, Relaxed);
            granule.reader.store(0, Relaxed);
        }
        span.mark_written();
        Ok(())
    }

    /// Records an atomic access by an agent of `block`, which other atomic ones may meet in any order.
    fn record_atomic(
        &self,
        span: &Span<'_>,
        block: u32,
        access: &Access<'_>,
        wrote: bool,
    ) -> Checked {
        let who = Who::new(block, access);
        let verb = if wrote { "atomically writes" } else { "atomically reads" };
        for granule in &self.shadows[span.index][span.granules()] {
            let writer = Who(granule.writer.load(Relaxed));
            let site = granule.writer_site.load(Relaxed);
            if site & ATOMIC == 0 && !writer.precedes(block, access) {
                return Err(self.race(span, block, access, [verb, "wrote"], writer, site));
            }
            if !wrote {
                continue;
            }
            let reader = Who(granule.reader.load(Relaxed));
            if !reader.precedes(block, access) {
                let site = granule.reader_site.load(Relaxed);
                return Err(self.race(span, block, access, [verb, "read"], reader, site));
            }
            granule.writer_site.store(site_bits(access.site) | ATOMIC, Relaxed);
            granule.writer.store(who.0, Relaxed);
            granule.reader.store(0, Relaxed);
        }
        if wrote {
            span.mark_written();
        }
        Ok(())
    }

    #[cold]
    fn race(
        &self,
        span: &Span<'_>,
        block: u32,
        access: &Access<'_>,
        [verb, other_verb]: [&str; 2],
        other: Who,
        other_site: u64,
    ) -> Box<Fault> {
        // SAFETY: made from a `Site` by `site_bits`.
        let site: Site = unsafe { &*((other_site & !ATOMIC) as *const Location<'static>) };
        let agents = Agents::new(self.threads);
        let whose = if other.block() == block {
            String::new()
        } else {
            format!(" of block {}", other.block())
        };
        Fault::new(
            Cause::Race,
            format!(
                "{} {verb} byte {} of buffer `{}`, which {}{whose} {other_verb} at {site}, and nothing \
                 orders the two",
                agents.describe(access.agent),
                span.offset,
                span.buffer.name,
                agents.describe(other.agent())
            ),
        )
    }

    /// Runs `operation`, an atomic one, which says what it gives and whether it wrote: checks it against ordinary
    /// accesses, and lets `view` acquire and release.
    pub(crate) fn atomic<R>(
        &self,
        span: &Span<'_>,
        block: u32,
        view: &mut View,
        access: &Access<'_>,
        synchronisation: Synchronisation,
        operation: impl FnOnce() -> (R, bool),
    ) -> Checked<R> {
        let mut all = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let released = all.entry(span.address()).or_default();
        if synchronisation.reads {
            for (by, released) in released.iter() {
                let (from, is_narrow) = *by;
                if from == block || !(is_narrow || synchronisation.scope == Scope::Block) {
                    view.read_released(from, block, released, synchronisation.order.acquires());
                }
            }
        }
        let (result, wrote) = operation();
        self.record_atomic(span, block, access, wrote)?;
        if wrote {
            if !synchronisation.keeps {
                released.clear();
            }
            for (is_narrow, now) in view.releases(synchronisation).into_iter().flatten() {
                match released.get_mut(&(block, is_narrow)) {
                    Some(before) => before.join(&now, &mut Joins::default()),
                    None => {
                        released.insert((block, is_narrow), now);
                    }
                }
            }
        }
        Ok(result)
    }
}
