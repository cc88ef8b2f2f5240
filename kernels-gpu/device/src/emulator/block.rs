//! A thread block under way: its threads, warps and shared memory.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use corosensei::Yielder;

use crate::emulator::async_copy::AsyncCopy;
use crate::emulator::barrier::NamedBarrier;
use crate::emulator::bulk::BulkCopy;
use crate::emulator::clock::{Agents, Clock, Joins, View};
use crate::emulator::grid::Grid;
use crate::emulator::mbarrier::{LatestWait, Mbarrier};
use crate::emulator::random::Random;
use crate::emulator::register::Registers;
use crate::emulator::report::{Cause, Checked, Fault, Report, Site};
use crate::emulator::schedule::{Kind, Schedule, Step};
use crate::emulator::shared::SharedMemory;
use crate::emulator::warp::Warp;

/// Polls a thread, and in all, without any progress after which a block is said to be stuck.
const PATIENCE: [u32; 2] = [500, 20_000];

/// Why a thread does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Waiting {
    /// For the other lanes of its warp, in this instruction.
    Lanes(&'static str),
    /// At a block barrier.
    Barrier(u32),
    /// For a phase of the mbarrier at this address.
    Mbarrier { address: u32, parity: u32 },
    /// For so many registers a thread.
    Registers(u32),
    /// It can go on, but the latest it did was to look in vain, by this instruction.
    Polling(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Waiting(Waiting),
    Exited,
}

/// A thread.
pub(crate) struct Thread {
    pub(crate) state: State,
    /// The instruction it is at, while it waits.
    pub(crate) site: Option<Site>,
    pub(crate) view: View,
    pub(crate) yielder: *const Yielder<(), ()>,
    /// Groups of `cp.async` closed so far.
    pub(crate) copy_groups: u32,
    /// Groups of bulk copies closed so far.
    pub(crate) bulk_groups: u32,
    pub(crate) latest_wait: Option<LatestWait>,
    pub(crate) waited_dependencies: bool,
}

/// A block.
pub(crate) struct Block<'g> {
    pub(crate) grid: &'g Grid<'g>,
    pub(crate) index: [u32; 3],
    /// Number of the block within the grid.
    pub(crate) linear: u32,
    pub(crate) threads: Vec<Thread>,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: SharedMemory,
    pub(crate) agents: Agents,
    pub(crate) joins: Joins,
    pub(crate) start: Clock,
    pub(crate) barriers: [NamedBarrier; 16],
    pub(crate) mbarriers: Vec<Mbarrier>,
    pub(crate) bulk: Vec<BulkCopy>,
    pub(crate) copies: Vec<AsyncCopy>,
    /// What each warpgroup's warps have multiplied, as far as they differ.
    pub(crate) warpgroups: Vec<crate::emulator::wgmma::Agreement>,
    pub(crate) registers: Registers,
    pub(crate) random: Random,
    /// The running thread.
    pub(crate) current: u32,
    pub(crate) exited: u32,
    pub(crate) report: Option<Box<Report>>,
    /// The steps so far, if they are recorded.
    trace: Option<Vec<Step>>,
    /// The steps to take before the seed decides, latest first.
    replay: Vec<Step>,
    ready_warps: u32,
    current_warp: u32,
    polls: u32,
    progress: u64,
}

impl<'g> Block<'g> {
    pub(crate) fn new(grid: &'g Grid<'g>, linear: u32) -> Self {
        let [x, y, _] = grid.blocks;
        let agents = Agents::new(grid.threads);
        let start: Clock = vec![0; agents.count()].into();
        let thread = |index: u32| Thread {
            state: State::Ready,
            site: None,
            view: View::new(index as u16, &start),
            yielder: ptr::null(),
            copy_groups: 0,
            bulk_groups: 0,
            latest_wait: None,
            waited_dependencies: false,
        };
        let warps = grid.threads / 32;
        Self {
            grid,
            index: [linear % x, linear / x % y, linear / x / y],
            linear,
            threads: (0..grid.threads).map(thread).collect(),
            warps: (0..warps).map(|_| Warp::new()).collect(),
            shared: SharedMemory::new(grid.shared_bytes),
            agents,
            joins: Joins::default(),
            start,
            barriers: Default::default(),
            mbarriers: Vec::new(),
            bulk: Vec::new(),
            copies: Vec::new(),
            warpgroups: (0..warps.div_ceil(4)).map(|_| Default::default()).collect(),
            registers: Registers::new(grid.threads, grid.registers),
            random: Random::new(grid.seed, linear),
            current: 0,
            exited: 0,
            report: None,
            trace: grid.record.then(Vec::new),
            replay: grid.replay_of(linear),
            ready_warps: (u64::MAX >> (64 - warps)) as u32,
            current_warp: 0,
            polls: 0,
            progress: 0,
        }
    }

    /// The running thread.
    pub(crate) fn thread(&mut self) -> &mut Thread {
        &mut self.threads[self.current as usize]
    }

    /// Threads of a warp.
    pub(crate) fn warp_threads(warp: u32) -> std::ops::Range<u32> {
        warp * 32..warp * 32 + 32
    }

    /// Lets a waiting thread go on.
    pub(crate) fn wake(&mut self, thread: u32) {
        self.threads[thread as usize].state = State::Ready;
        self.warps[(thread / 32) as usize].ready |= 1 << (thread % 32);
        self.ready_warps |= 1 << (thread / 32);
    }

    /// Makes a thread wait; it then has to suspend.
    pub(crate) fn wait(&mut self, thread: u32, waiting: Waiting, site: Site) {
        let thread = &mut self.threads[thread as usize];
        thread.state = State::Waiting(waiting);
        thread.site = Some(site);
    }

    /// Notes that the running thread looked in vain; it then has to suspend, and goes on later.
    pub(crate) fn poll(&mut self, what: &'static str, site: Site) -> Checked {
        let progress = self.grid.progress.load(Relaxed);
        if progress != self.progress {
            self.progress = progress;
            self.polls = 0;
        }
        self.polls += 1;
        if self.polls > PATIENCE[0] * self.grid.threads + PATIENCE[1] {
            self.wait(self.current, Waiting::Polling(what), site);
            return Err(self.deadlock());
        }
        let current = self.current;
        self.wake(current);
        self.wait(current, Waiting::Polling(what), site);
        Ok(())
    }

    /// The next step of the schedule that is replayed.
    pub(crate) fn replayed(&mut self) -> Option<Step> {
        self.replay.pop()
    }

    fn record(&mut self, step: Step) {
        if let Some(trace) = &mut self.trace {
            trace.push(step);
        }
    }

    /// Chooses a thread that can go on. A warp mostly runs until its lanes wait.
    pub(crate) fn choose(&mut self) -> Option<u32> {
        if self.ready_warps == 0 {
            return None;
        }
        let stays = self.ready_warps >> self.current_warp & 1 == 1 && !self.random.one_in(32);
        if !stays {
            self.current_warp = self.random.bit(self.ready_warps);
        }
        let lane = self.random.bit(self.warps[self.current_warp as usize].ready);
        let thread = self.current_warp * 32 + lane;
        self.take(thread);
        Some(thread)
    }

    /// Takes a thread from those that can go on; false if it cannot.
    pub(crate) fn take(&mut self, thread: u32) -> bool {
        let (index, lane) = (thread / 32, thread % 32);
        let Some(warp) = self.warps.get_mut(index as usize) else {
            return false;
        };
        if warp.ready >> lane & 1 == 0 {
            return false;
        }
        warp.ready &= !(1 << lane);
        if warp.ready == 0 {
            self.ready_warps &= !(1 << index);
        }
        self.record(Step::Run { thread });
        true
    }

    /// Lets one asynchronous operation that was started take effect; false if there is none.
    pub(crate) fn land_one(&mut self) -> Checked<bool> {
        let first = self.random.below(3) as usize;
        for kind in (0..3).map(|i| Kind::ALL[(first + i) % 3]) {
            let flying = self.flying(kind);
            if flying > 0 {
                let index = self.random.below(flying);
                self.land(kind, index)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Operations of that kind under way; of products, warps that have some.
    fn flying(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Bulk => self.flying_bulk(),
            Kind::Copy => self.copies.len() as u32,
            Kind::Wgmma => self.multiplying_warps().count() as u32,
        }
    }

    /// Lets one of those operations take effect; false if there are not so many.
    pub(crate) fn land(&mut self, kind: Kind, index: u32) -> Checked<bool> {
        if index >= self.flying(kind) {
            return Ok(false);
        }
        self.record(Step::Land { kind, index });
        match kind {
            Kind::Bulk => self.land_flying_bulk(index)?,
            Kind::Copy => self.land_copy(index as usize)?,
            Kind::Wgmma => {
                let warp = self.multiplying_warps().nth(index as usize);
                self.compute_next(warp.expect("it was counted"))?;
            }
        }
        self.grid.note_progress();
        Ok(true)
    }

    /// Whether an asynchronous operation has been started and has not taken effect.
    pub(crate) fn in_flight(&self) -> bool {
        !self.copies.is_empty() || !self.bulk.is_empty() || self.wgmma_in_flight()
    }

    /// The running thread's last instruction was executed.
    pub(crate) fn exit(&mut self, thread: u32) -> Checked {
        self.threads[thread as usize].state = State::Exited;
        self.exited += 1;
        self.grid.note_progress();
        let warp = &mut self.warps[(thread / 32) as usize];
        warp.exited |= 1 << (thread % 32);
        if let Some((name, site)) = warp.waits_for(1 << (thread % 32)) {
            return Err(Fault::new(
                Cause::Divergence,
                format!(
                    "lane {} exits while other lanes of its warp wait for it in {name} at {site}",
                    thread % 32
                ),
            ));
        }
        self.check_bulk_waited(thread)
    }

    /// Checks what must hold when all threads have exited.
    pub(crate) fn finish(&mut self) -> Checked {
        let copy = self.copies.first().map(|copy| (copy.thread, copy.site));
        let bulk = self.bulk.iter().find(|copy| copy.is_to_shared());
        if let Some((thread, site)) = copy.or(bulk.map(|copy| (copy.thread, copy.site))) {
            // Who has used its destination meanwhile says more than that it is late.
            while self.land_one()? {}
            return Err(Fault::new(
                Cause::Unwaited,
                "the block ends while a copy into its shared memory is under way",
            )
            .by(thread, site));
        }
        self.check_registers()?;
        self.check_wgmma_finished()
    }

    /// A fault as a report.
    pub(crate) fn describe(
        &self,
        fault: Fault,
        thread: Option<u32>,
        site: Option<Site>,
    ) -> Box<Report> {
        let (thread, site) = match fault.by {
            Some((thread, site)) => (Some(thread), Some(site)),
            None => (thread, site),
        };
        let mut message = fault.message;
        if matches!(fault.cause, Cause::Race | Cause::Unwritten)
            && let Some(wait) = thread.and_then(|t| self.threads[t as usize].latest_wait)
        {
            message += &wait.describe();
        }
        Box::new(Report {
            cause: fault.cause,
            block: self.index,
            thread,
            site,
            seed: self.grid.seed,
            schedule: self.trace.as_ref().map(|steps| Schedule {
                seed: self.grid.seed,
                block: self.linear,
                steps: steps.as_slice().into(),
            }),
            message,
        })
    }
}

thread_local! {
    static CURRENT: Cell<*mut Block<'static>> = const { Cell::new(ptr::null_mut()) };
}

/// Makes `block` the one whose threads run on this OS thread.
pub(crate) fn enter(block: *mut Block<'_>) {
    CURRENT.set(block.cast());
}

/// Runs one instruction of the running thread; if it is a mistake the thread stops for good.
#[inline]
pub(crate) fn instruction<R>(site: Site, body: impl FnOnce(&mut Block<'_>) -> Checked<R>) -> R {
    let block = CURRENT.get();
    assert!(!block.is_null(), "a device function was called outside of `Launch::run`");
    // SAFETY: the scheduler set it to the block whose coroutine runs now, and holds no reference to it
    // while it does; `body` does not suspend, so this is the only one.
    match body(unsafe { &mut *block }) {
        Ok(result) => result,
        Err(fault) => stop(*fault, site),
    }
}

#[cold]
fn stop(fault: Fault, site: Site) -> ! {
    // SAFETY: as in `instruction`, whose reference is gone.
    let block = unsafe { &mut *CURRENT.get() };
    block.report = Some(block.describe(fault, Some(block.current), Some(site)));
    loop {
        suspend();
    }
}

/// Gives control to the scheduler, until it chooses this thread again.
pub(crate) fn suspend() {
    // SAFETY: as in `instruction`; the reference ends with the statement.
    let yielder = unsafe {
        let block = &*CURRENT.get();
        block.threads[block.current as usize].yielder
    };
    // SAFETY: the coroutine that runs now set it from its own argument, which lives as long as it.
    unsafe { (*yielder).suspend(()) }
}
