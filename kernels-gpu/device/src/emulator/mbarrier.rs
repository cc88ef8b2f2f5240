//! Barriers in shared memory that count arrivals and bytes (`mbarrier`).

use std::panic::Location;

use crate::emulator::block::{Block, Waiting, instruction, suspend};
use crate::emulator::clock::{Agent, Gather, Released};
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::shared::BASE;
use crate::emulator::span::check_aligned;

/// Most arrivals and outstanding bytes (PTX ISA, "mbarrier", valid ranges).
const LIMIT: i64 = (1 << 20) - 1;

/// One of them.
pub(crate) struct Mbarrier {
    address: u32,
    count: u32,
    pending: u32,
    /// Bytes the present phase still waits for; below zero if more came than were announced.
    bytes: i64,
    phase: u64,
    arrivals: Gather,
    completed: Released,
    waiters: Vec<u32>,
    made: (Agent, u32),
    made_at: Site,
    /// Whether the async proxy sees that it exists.
    fenced: bool,
}

/// A thread's latest wait, which tells much about a race that follows.
#[derive(Clone, Copy)]
pub(crate) struct LatestWait {
    address: u32,
    parity: u32,
    phase: u64,
    site: Site,
}

impl LatestWait {
    pub(crate) fn describe(&self) -> String {
        let by = match self.phase.checked_sub(1) {
            Some(phase) => format!("by phase {phase}"),
            None => "at once, before phase 0 was complete".to_owned(),
        };
        format!(
            "; the thread's latest wait, for parity {} of the mbarrier at +{:#x} at {}, was satisfied {by}: \
             is that the phase it meant?",
            self.parity,
            self.address - BASE,
            self.site
        )
    }
}

impl Mbarrier {
    /// Whether a wait for `parity` is over.
    fn passed(&self, parity: u32) -> bool {
        self.phase % 2 != u64::from(parity)
    }

    fn name(&self) -> String {
        format!("the mbarrier at +{:#x}", self.address - BASE)
    }
}

/// `mbarrier.init`.
#[track_caller]
pub fn init(address: u32, count: u32) {
    let site = Location::caller();
    instruction(site, |block| {
        check_aligned("mbarrier", address.into(), 8)?;
        if count == 0 || i64::from(count) > LIMIT {
            let text = format!("an mbarrier for {count} arrivals: 1 to {LIMIT} are possible");
            return Err(Fault::new(Cause::Operand, text));
        }
        if let Some(known) = block.mbarriers.iter().find(|b| b.address == address) {
            let text = format!("{} was already made at {}", known.name(), known.made_at);
            return Err(Fault::new(Cause::Barrier, text));
        }
        block.write_shared(block.current, address, &[0; 8], site)?;
        block.mbarriers.push(Mbarrier {
            address,
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            arrivals: Gather::default(),
            completed: Released::nothing(&block.start),
            waiters: Vec::new(),
            made: block.threads[block.current as usize].view.now(),
            made_at: site,
            fenced: false,
        });
        Ok(())
    });
}

/// `fence.mbarrier_init`.
#[track_caller]
pub fn fence_init() {
    instruction(Location::caller(), |block| {
        block.fence_mbarriers();
        Ok(())
    });
}

/// `mbarrier.inval`.
#[track_caller]
pub fn invalidate(address: u32) {
    instruction(Location::caller(), |block| {
        let index = block.find_mbarrier(address)?;
        let barrier = block.mbarriers.swap_remove(index);
        if !barrier.waiters.is_empty() || barrier.bytes != 0 {
            let text = format!("{} is invalidated while it is in use", barrier.name());
            return Err(Fault::new(Cause::Barrier, text));
        }
        block.shared.shadow.forget(address - BASE, 8);
        Ok(())
    });
}

/// `mbarrier.arrive`.
#[track_caller]
pub fn arrive(address: u32) {
    instruction(Location::caller(), |block| block.arrive(address, 0));
}

/// `mbarrier.arrive.expect_tx`.
#[track_caller]
pub fn arrive_expect_tx(address: u32, bytes: u32) {
    instruction(Location::caller(), |block| block.arrive(address, bytes));
}

/// `mbarrier.try_wait.parity`. Others run after it says no.
#[track_caller]
pub fn try_wait(address: u32, parity: u32) -> bool {
    let site = Location::caller();
    let passed = instruction(site, |block| {
        let passed = block.pass(address, parity, site)?;
        if !passed {
            block.poll("mbarrier try_wait", site)?;
        }
        Ok(passed)
    });
    if !passed {
        suspend();
    }
    passed
}

/// A loop of `mbarrier.try_wait.parity`.
#[track_caller]
pub fn wait(address: u32, parity: u32) {
    let site = Location::caller();
    loop {
        let passed = instruction(site, |block| {
            let passed = block.pass(address, parity, site)?;
            if !passed {
                let current = block.current;
                let index = block.find_mbarrier(address)?;
                block.mbarriers[index].waiters.push(current);
                block.wait(current, Waiting::Mbarrier { address, parity }, site);
            }
            Ok(passed)
        });
        if passed {
            return;
        }
        suspend();
    }
}

impl Block<'_> {
    /// The barrier at `address`, which the running thread must know to exist.
    fn find_mbarrier(&self, address: u32) -> Checked<usize> {
        let Some(index) = self.mbarriers.iter().position(|b| b.address == address) else {
            let text =
                format!("there is no mbarrier at +{:#x}", i64::from(address) - i64::from(BASE));
            return Err(Fault::new(Cause::Barrier, text));
        };
        let barrier = &self.mbarriers[index];
        let (agent, epoch) = barrier.made;
        if !self.threads[self.current as usize].view.sees(agent, epoch) {
            let text = format!(
                "uses {} that thread {agent} makes at {}, and no barrier orders the two",
                barrier.name(),
                barrier.made_at
            );
            return Err(Fault::new(Cause::Race, text));
        }
        Ok(index)
    }

    /// Checks that a bulk copy can report to the barrier at `address`.
    pub(crate) fn check_bulk_mbarrier(&self, address: u32) -> Checked {
        let barrier = &self.mbarriers[self.find_mbarrier(address)?];
        if !barrier.fenced {
            let text = format!(
                "a bulk copy reports to {}, made at {} without a fence_init or fence.proxy.async after it",
                barrier.name(),
                barrier.made_at
            );
            return Err(Fault::new(Cause::ProxyFence, text));
        }
        Ok(())
    }

    /// The async proxy sees the barriers that the running thread knows.
    pub(crate) fn fence_mbarriers(&mut self) {
        let view = &self.threads[self.current as usize].view;
        for barrier in &mut self.mbarriers {
            let (agent, epoch) = barrier.made;
            barrier.fenced |= view.sees(agent, epoch);
        }
    }

    fn arrive(&mut self, address: u32, bytes: u32) -> Checked {
        let index = self.find_mbarrier(address)?;
        let barrier = &mut self.mbarriers[index];
        barrier.bytes += i64::from(bytes);
        if barrier.bytes > LIMIT {
            let text =
                format!("{} waits for {} bytes, of at most {LIMIT}", barrier.name(), barrier.bytes);
            return Err(Fault::new(Cause::Operand, text));
        }
        let Some(pending) = barrier.pending.checked_sub(1) else {
            let text = format!(
                "{} gets an arrival more than the {} of its phase {}",
                barrier.name(),
                barrier.count,
                barrier.phase
            );
            return Err(Fault::new(Cause::Barrier, text));
        };
        barrier.pending = pending;
        barrier.arrivals.add(&mut self.threads[self.current as usize].view);
        self.complete_phase(index);
        Ok(())
    }

    /// A bulk copy of `bytes` by `(agent, epoch)` has landed.
    pub(crate) fn complete_bytes(
        &mut self,
        address: u32,
        bytes: u32,
        agent: Agent,
        epoch: u32,
    ) -> Checked {
        let Some(index) = self.mbarriers.iter().position(|b| b.address == address) else {
            let text =
                format!("the mbarrier at +{:#x} is gone when a bulk copy lands", address - BASE);
            return Err(Fault::new(Cause::Barrier, text));
        };
        let agents = self.agents.count();
        let barrier = &mut self.mbarriers[index];
        barrier.bytes -= i64::from(bytes);
        barrier.arrivals.add_agent(agents, agent, epoch);
        self.complete_phase(index);
        Ok(())
    }

    fn complete_phase(&mut self, index: usize) {
        let barrier = &mut self.mbarriers[index];
        if barrier.pending > 0 || barrier.bytes != 0 {
            return;
        }
        barrier.pending = barrier.count;
        barrier.phase += 1;
        let released = barrier.arrivals.finish();
        barrier.completed.join(&released, &mut self.joins);
        for thread in std::mem::take(&mut barrier.waiters) {
            self.wake(thread);
        }
        self.grid.note_progress();
    }

    /// Whether the wait is over; then the running thread acquires what was released.
    fn pass(&mut self, address: u32, parity: u32, site: Site) -> Checked<bool> {
        if parity > 1 {
            let text = format!("parity {parity}: 0 and 1 are possible");
            return Err(Fault::new(Cause::Operand, text));
        }
        let index = self.find_mbarrier(address)?;
        let barrier = &self.mbarriers[index];
        if !barrier.passed(parity) {
            return Ok(false);
        }
        let thread = &mut self.threads[self.current as usize];
        thread.view.acquire(&barrier.completed, &mut self.joins);
        thread.latest_wait = Some(LatestWait { address, parity, phase: barrier.phase, site });
        Ok(true)
    }

    pub(crate) fn describe_mbarrier(&self, address: u32, parity: u32) -> String {
        match self.mbarriers.iter().find(|b| b.address == address) {
            None => format!("parity {parity} of an mbarrier that is gone"),
            Some(barrier) => format!(
                "parity {parity} of {}, which is in phase {} and waits for {} of {} arrivals and {} bytes",
                barrier.name(),
                barrier.phase,
                barrier.pending,
                barrier.count,
                barrier.bytes
            ),
        }
    }
}
