//! Warps: instructions that all lanes execute together.

use std::any::TypeId;
use std::panic::Location;

use crate::emulator::block::{Block, Waiting, instruction, suspend};
use crate::emulator::clock::Gather;
use crate::emulator::report::{Cause, Checked, Fault, Site, lanes};
use crate::emulator::wgmma::WarpQueue;

/// A warp of the running block.
pub(crate) struct Warp {
    /// Lanes that can go on and are not running.
    pub(crate) ready: u32,
    pub(crate) exited: u32,
    meeting: Option<Meeting>,
    pub(crate) queue: WarpQueue,
}

/// An instruction that some lanes have reached.
struct Meeting {
    name: &'static str,
    site: Site,
    payload: TypeId,
    arrived: u32,
    /// Each lane's operands, on its own stack.
    operands: [*mut (); 32],
}

/// What the lanes do after their instruction.
pub(crate) enum Outcome {
    /// They go on.
    Go,
    /// They wait on.
    Wait(Waiting),
}

impl Warp {
    pub(crate) fn new() -> Self {
        Self {
            ready: u32::MAX,
            exited: 0,
            meeting: None,
            queue: WarpQueue::default(),
        }
    }

    /// The instruction in which lanes wait for others.
    pub(crate) fn waits_in(&self) -> Option<(&'static str, Site)> {
        self.meeting
            .as_ref()
            .map(|meeting| (meeting.name, meeting.site))
    }

    /// Lanes that wait for others.
    pub(crate) fn arrived(&self) -> u32 {
        self.meeting.as_ref().map_or(0, |meeting| meeting.arrived)
    }
}

/// Executes an instruction once all lanes of the warp have reached it: the last one runs `complete` on
/// the operands of all.
pub(crate) fn collective<P: 'static>(
    name: &'static str,
    site: Site,
    operands: &mut P,
    complete: impl FnOnce(&mut Block<'_>, &mut [&mut P; 32]) -> Checked<Outcome>,
) {
    let operands: *mut P = operands;
    let waits = instruction(site, |block| {
        let Some(arrived) = block.meet(name, site, TypeId::of::<P>(), operands.cast())? else {
            block.wait(block.current, Waiting::Lanes(name), site);
            return Ok(true);
        };
        // SAFETY: all lanes are suspended in this function, called with the same `P`, and each keeps
        // its own operands alive until it goes on.
        let mut lanes = arrived.map(|operands| unsafe { &mut *operands.cast::<P>() });
        let outcome = complete(block, &mut lanes)?;
        let current = block.current;
        for thread in Block::warp_threads(current / 32) {
            match outcome {
                Outcome::Go if thread == current => {}
                Outcome::Go => block.wake(thread),
                Outcome::Wait(waiting) => block.wait(thread, waiting, site),
            }
        }
        Ok(matches!(outcome, Outcome::Wait(_)))
    });
    if waits {
        suspend();
    }
}

impl Block<'_> {
    /// The running lane reaches a warp-wide instruction: all lanes' operands if it is the last.
    fn meet(
        &mut self,
        name: &'static str,
        site: Site,
        payload: TypeId,
        operands: *mut (),
    ) -> Checked<Option<[*mut (); 32]>> {
        let (warp, lane) = (self.current / 32, self.current % 32);
        let state = &mut self.warps[warp as usize];
        if state.exited != 0 {
            return Err(Fault::new(
                Cause::Divergence,
                format!(
                    "{name} needs all lanes of warp {warp}, and lanes {} have exited",
                    lanes(state.exited)
                ),
            ));
        }
        let meeting = state.meeting.get_or_insert(Meeting {
            name,
            site,
            payload,
            arrived: 0,
            operands: [std::ptr::null_mut(); 32],
        });
        let same_site = std::ptr::eq(meeting.site, site) || meeting.site == site;
        if meeting.name != name || !same_site || meeting.payload != payload {
            return Err(Fault::new(
                Cause::Divergence,
                format!(
                    "lane {lane} is in {name} while lanes {} of its warp are in {} at {}",
                    lanes(meeting.arrived),
                    meeting.name,
                    meeting.site
                ),
            ));
        }
        meeting.arrived |= 1 << lane;
        meeting.operands[lane as usize] = operands;
        if meeting.arrived != u32::MAX {
            return Ok(None);
        }
        let operands = meeting.operands;
        state.meeting = None;
        Ok(Some(operands))
    }
}

/// `bar.warp.sync`: orders memory between the lanes.
#[track_caller]
pub fn sync() {
    collective("sync_warp", Location::caller(), &mut (), |block, _| {
        let warp = Block::warp_threads(block.current / 32);
        let mut gather = Gather::default();
        for thread in warp.clone() {
            gather.add(&mut block.threads[thread as usize].view);
        }
        let released = gather.finish();
        for thread in warp {
            block.threads[thread as usize].view.adopt(&released);
        }
        Ok(Outcome::Go)
    });
}

/// Each lane's value, replaced by what `result` makes of its number and all lanes' values.
fn exchange(
    name: &'static str,
    site: Site,
    value: [u32; 2],
    result: impl FnOnce(&[[u32; 2]; 32]) -> Checked<[u32; 32]>,
) -> u32 {
    let mut operands = value;
    collective(name, site, &mut operands, |_, lanes| {
        let values = std::array::from_fn(|lane| *lanes[lane]);
        for (lane, result) in lanes.iter_mut().zip(result(&values)?) {
            lane[0] = result;
        }
        Ok(Outcome::Go)
    });
    operands[0]
}

/// `shfl.sync.bfly`: the value of lane `lane ^ mask`.
#[track_caller]
pub fn shuffle_xor(value: u32, mask: u32) -> u32 {
    exchange("shuffle_xor", Location::caller(), [value, mask], |lanes| {
        Ok(std::array::from_fn(|lane| {
            lanes[(lane ^ lanes[lane][1] as usize) % 32][0]
        }))
    })
}

/// `shfl.sync.idx`: the value of lane `lane`.
#[track_caller]
pub fn shuffle_idx(value: u32, lane: u32) -> u32 {
    exchange(
        "shuffle_idx",
        Location::caller(),
        [value, lane],
        |lanes| match lanes.iter().find(|[_, source]| *source >= 32) {
            Some([_, source]) => Err(Fault::new(
                Cause::Operand,
                format!("shuffle_idx from lane {source}, of 32"),
            )),
            None => Ok(std::array::from_fn(|lane| {
                lanes[lanes[lane][1] as usize][0]
            })),
        },
    )
}

/// `vote.sync.ballot`: bit `l` is what lane `l` passed.
#[track_caller]
pub fn ballot(predicate: bool) -> u32 {
    let value = [u32::from(predicate), 0];
    exchange("ballot", Location::caller(), value, |lanes| {
        Ok([lanes.iter().rev().fold(0, |mask, [bit, _]| mask << 1 | bit); 32])
    })
}

/// `elect.sync`: true in one lane, the same for all elections of a launch.
#[track_caller]
pub fn elect_one() -> bool {
    let site = Location::caller();
    // PTX leaves open which lane; the seed decides.
    let elected = instruction(site, |block| Ok(block.grid.seed as u32 % 32));
    exchange("elect_one", site, [0; 2], |_| {
        Ok(std::array::from_fn(|lane| {
            u32::from(lane as u32 == elected)
        }))
    }) != 0
}

/// `setmaxnreg`: registers are not modelled, but all lanes must agree.
#[track_caller]
pub fn set_max_registers(count: u32) {
    exchange("setmaxnreg", Location::caller(), [count, 0], |lanes| {
        Ok(lanes.map(|[count, _]| count))
    });
}
