//! A block's sixteen named barriers (`bar.sync`, `bar.arrive`).

use std::panic::Location;

use crate::emulator::block::{Block, Waiting};
use crate::emulator::clock::Gather;
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::warp::{Outcome, collective};

/// One of them.
#[derive(Default)]
pub(crate) struct NamedBarrier {
    expected: u32,
    arrived: u32,
    gather: Gather,
    waiting: Vec<u32>,
}

impl NamedBarrier {
    pub(crate) fn describe(&self, id: u32) -> String {
        format!("barrier {id}, {} of {} threads have arrived", self.arrived, self.expected)
    }
}

/// `bar.sync 0` of the whole block.
#[track_caller]
pub fn sync_threads() {
    reach("sync_threads", 0, None, true, Location::caller());
}

/// `bar.sync id, threads`.
#[track_caller]
pub fn named_sync(id: u32, threads: u32) {
    reach("named_barrier_sync", id, Some(threads), true, Location::caller());
}

/// `bar.arrive id, threads`.
#[track_caller]
pub fn named_arrive(id: u32, threads: u32) {
    reach("named_barrier_arrive", id, Some(threads), false, Location::caller());
}

fn reach(name: &'static str, id: u32, threads: Option<u32>, waits: bool, site: Site) {
    let mut operands = (id, threads);
    collective(name, site, &mut operands, |block, lanes| {
        let all = block.grid.threads;
        if let Some(other) = lanes.iter().find(|lane| ***lane != (id, threads)) {
            return Err(Fault::new(
                Cause::Barrier,
                format!(
                    "lanes of a warp name different barriers or counts: {:?} and {other:?}",
                    (id, threads)
                ),
            ));
        }
        let threads = threads.unwrap_or(all);
        if threads == 0 || !threads.is_multiple_of(32) || threads > all {
            return Err(Fault::new(
                Cause::Barrier,
                format!("{name} of {threads} threads: a multiple of 32, at most {all}, is needed"),
            ));
        }
        block.arrive_at_barrier(id, threads, waits)
    });
}

impl Block<'_> {
    /// The running warp arrives.
    fn arrive_at_barrier(&mut self, id: u32, threads: u32, waits: bool) -> Checked<Outcome> {
        let barrier = &mut self.barriers[id as usize];
        if barrier.arrived == 0 {
            barrier.expected = threads;
        }
        if barrier.expected != threads {
            return Err(Fault::new(
                Cause::Barrier,
                format!(
                    "barrier {id} is named with {threads} threads, and with {} by those who have arrived",
                    barrier.expected
                ),
            ));
        }
        let warp = Self::warp_threads(self.current / 32);
        for thread in warp.clone() {
            barrier.gather.add(&mut self.threads[thread as usize].view);
        }
        barrier.arrived += 32;
        if waits {
            barrier.waiting.extend(warp.clone());
        }
        if barrier.arrived < barrier.expected {
            return Ok(if waits { Outcome::Wait(Waiting::Barrier(id)) } else { Outcome::Go });
        }
        barrier.arrived = 0;
        let released = barrier.gather.finish();
        for thread in std::mem::take(&mut barrier.waiting) {
            self.threads[thread as usize].view.adopt(&released);
            if !warp.contains(&thread) {
                self.wake(thread);
            }
        }
        self.grid.note_progress();
        Ok(Outcome::Go)
    }
}
