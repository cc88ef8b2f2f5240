//! The registers of a block, which its warpgroups deal out among themselves (`setmaxnreg`).

use std::panic::Location;

use crate::emulator::block::{Block, Waiting};
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::warp::{Outcome, collective};

/// Registers of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
pub(crate) const FILE: u32 = 65_536;

/// Registers are dealt out in so many a thread.
const STEP: u32 = 8;

/// Most that a thread can have when its kernel starts.
const MOST: u32 = 248;

/// Registers a thread of a block of `threads`, if its launch does not say: as many as ptxas would give it.
pub(crate) fn share(threads: u32) -> u32 {
    (FILE / threads / STEP * STEP).min(MOST)
}

/// What the warps of a block have, and what nobody has.
pub(crate) struct Registers {
    free: u32,
    /// Of each thread of a warp.
    owned: Vec<u32>,
    /// What each warpgroup asked for, one request after the other.
    requests: Vec<Vec<Request>>,
    /// How many of them each warp has made.
    made: Vec<usize>,
    /// Warps that wait for more.
    waiting: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Request {
    name: &'static str,
    count: u32,
    site: Site,
}

impl Registers {
    pub(crate) fn new(threads: u32, each: u32) -> Self {
        let warps = threads.div_ceil(32) as usize;
        Self {
            free: 0,
            owned: vec![each; warps],
            requests: vec![Vec::new(); warps.div_ceil(4)],
            made: vec![0; warps],
            waiting: Vec::new(),
        }
    }

    /// What a wait for `count` registers a thread is for.
    pub(crate) fn describe(&self, count: u32) -> String {
        format!(
            "for {count} registers a thread: {} of the block's are free, and threads have, by warp, {:?}",
            self.free, self.owned
        )
    }

    /// Warp `warp` makes a request of its warpgroup's.
    fn request(&mut self, warp: u32, request: Request) -> Checked {
        let owned = self.owned[warp as usize];
        let is_lower = request.count < owned;
        if is_lower != (request.name == DEC) && request.count != owned {
            return Err(Fault::new(
                Cause::Operand,
                format!("{} to {} registers, of {owned}", request.name, request.count),
            ));
        }
        let made = &mut self.requests[warp as usize / 4];
        let number = self.made[warp as usize];
        self.made[warp as usize] += 1;
        match made.get(number) {
            None => made.push(request),
            Some(other) if *other == request => {}
            Some(other) => {
                return Err(Fault::new(
                    Cause::Divergence,
                    format!(
                        "warp {warp} is in {} to {}, where others of its warpgroup are in {} to {} at {}",
                        request.name, request.count, other.name, other.count, other.site
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Gives a warp `count` registers a thread, if there are so many.
    fn grant(&mut self, warp: u32, count: u32) -> bool {
        let owned = &mut self.owned[warp as usize];
        let fits = 32 * count <= self.free + 32 * *owned;
        if fits {
            self.free = self.free + 32 * *owned - 32 * count;
            *owned = count;
        }
        fits
    }
}

const INC: &str = "setmaxnreg.inc";
const DEC: &str = "setmaxnreg.dec";

/// `setmaxnreg.inc`: waits until others have given back what is asked for.
#[track_caller]
pub fn set_max_inc(count: u32) {
    set_max(Request { name: INC, count, site: Location::caller() });
}

/// `setmaxnreg.dec`.
#[track_caller]
pub fn set_max_dec(count: u32) {
    set_max(Request { name: DEC, count, site: Location::caller() });
}

fn set_max(request: Request) {
    let mut count = request.count;
    collective(request.name, request.site, &mut count, |block, lanes| {
        if lanes.iter().any(|lane| **lane != request.count) {
            let text = format!("lanes of a warp differ in the count of {}", request.name);
            return Err(Fault::new(Cause::Divergence, text));
        }
        let warp = block.current / 32;
        block.registers.request(warp, request)?;
        if !block.registers.grant(warp, request.count) {
            block.registers.waiting.push((warp, request.count));
            return Ok(Outcome::Wait(Waiting::Registers(request.count)));
        }
        block.grant_waiting();
        Ok(Outcome::Go)
    });
}

impl Block<'_> {
    /// Wakes the warps for which there are registers now.
    fn grant_waiting(&mut self) {
        for (warp, count) in std::mem::take(&mut self.registers.waiting) {
            if self.registers.grant(warp, count) {
                Self::warp_threads(warp).for_each(|thread| self.wake(thread));
                self.grid.note_progress();
            } else {
                self.registers.waiting.push((warp, count));
            }
        }
    }

    /// Checks, when all threads have exited, that all warps of each warpgroup made the same requests.
    pub(crate) fn check_registers(&self) -> Checked {
        for (warp, made) in (0..).zip(&self.registers.made) {
            if let Some(missed) = self.registers.requests[warp as usize / 4].get(*made) {
                return Err(Fault::new(
                    Cause::Divergence,
                    format!(
                        "warp {warp} never comes to the {} of its warpgroup at {}",
                        missed.name, missed.site
                    ),
                ));
            }
        }
        Ok(())
    }
}
