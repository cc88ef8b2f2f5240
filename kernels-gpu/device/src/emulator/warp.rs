//! Warps: instructions that several lanes execute together, mostly all of them.

use std::any::TypeId;
use std::panic::Location;

use crate::emulator::block::{Block, Waiting, instruction, suspend};
use crate::emulator::clock::Gather;
use crate::emulator::report::{Cause, Checked, Fault, Site, lanes};
use crate::emulator::wgmma::WarpQueue;

/// All lanes.
const FULL: u32 = u32::MAX;

/// A warp of the running block.
pub(crate) struct Warp {
    /// Lanes that can go on and are not running.
    pub(crate) ready: u32,
    pub(crate) exited: u32,
    /// Of lanes that have no lane in common.
    meetings: Vec<Meeting>,
    pub(crate) queue: WarpQueue,
}

/// An instruction that some lanes have reached.
struct Meeting {
    name: &'static str,
    site: Site,
    payload: TypeId,
    /// Lanes that take part.
    mask: u32,
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
        Self { ready: FULL, exited: 0, meetings: Vec::new(), queue: WarpQueue::default() }
    }

    /// The instruction in which other lanes wait for one of `lanes`.
    pub(crate) fn waits_for(&self, lanes: u32) -> Option<(&'static str, Site)> {
        let mut meetings = self.meetings.iter();
        let meeting = meetings.find(|meeting| meeting.mask & lanes != 0)?;
        Some((meeting.name, meeting.site))
    }

    /// Lanes that `lane` waits for.
    pub(crate) fn missing(&self, lane: u32) -> u32 {
        let mut meetings = self.meetings.iter();
        let meeting = meetings.find(|meeting| meeting.arrived >> lane & 1 == 1);
        meeting.map_or(0, |meeting| meeting.mask & !meeting.arrived)
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
    partial(name, site, FULL, operands, |block, arrived| {
        let mut lanes = std::array::from_fn(|lane| arrived[lane].take().expect("a whole warp"));
        complete(block, &mut lanes)
    });
}

/// [`collective`] of the lanes in `mask`: others have no operands.
pub(crate) fn partial<P: 'static>(
    name: &'static str,
    site: Site,
    mask: u32,
    operands: &mut P,
    complete: impl FnOnce(&mut Block<'_>, &mut [Option<&mut P>; 32]) -> Checked<Outcome>,
) {
    let operands: *mut P = operands;
    let waits = instruction(site, |block| {
        let Some(arrived) = block.meet(name, site, mask, TypeId::of::<P>(), operands.cast())?
        else {
            block.wait(block.current, Waiting::Lanes(name), site);
            return Ok(true);
        };
        // SAFETY: the lanes that arrived are suspended in this function, called with the same `P`, and each keeps
        // its own operands alive until it goes on; the others' are null.
        let mut lanes = arrived.map(|operands| unsafe { operands.cast::<P>().as_mut() });
        let outcome = complete(block, &mut lanes)?;
        let current = block.current;
        for thread in
            Block::warp_threads(current / 32).filter(|thread| mask >> (thread % 32) & 1 == 1)
        {
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
    /// The running lane reaches an instruction of the lanes in `mask`: their operands if it is the last.
    fn meet(
        &mut self,
        name: &'static str,
        site: Site,
        mask: u32,
        payload: TypeId,
        operands: *mut (),
    ) -> Checked<Option<[*mut (); 32]>> {
        let (warp, lane) = (self.current / 32, self.current % 32);
        let state = &mut self.warps[warp as usize];
        if mask >> lane & 1 == 0 {
            return Err(Fault::new(
                Cause::Divergence,
                format!("lane {lane} is in {name} of lanes {}, and not one of them", lanes(mask)),
            ));
        }
        if state.exited & mask != 0 {
            let all = if mask == FULL {
                "all lanes".to_owned()
            } else {
                format!("lanes {}", lanes(mask))
            };
            return Err(Fault::new(
                Cause::Divergence,
                format!(
                    "{name} needs {all} of warp {warp}, and lanes {} have exited",
                    lanes(state.exited & mask)
                ),
            ));
        }
        let index = state.meetings.iter().position(|meeting| meeting.mask & mask != 0);
        let index = index.unwrap_or_else(|| {
            state.meetings.push(Meeting {
                name,
                site,
                payload,
                mask,
                arrived: 0,
                operands: [std::ptr::null_mut(); 32],
            });
            state.meetings.len() - 1
        });
        let meeting = &mut state.meetings[index];
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
        if meeting.mask != mask {
            return Err(Fault::new(
                Cause::Divergence,
                format!(
                    "lane {lane} names lanes {} in {name}, where lanes {} name {}",
                    lanes(mask),
                    lanes(meeting.arrived),
                    lanes(meeting.mask)
                ),
            ));
        }
        meeting.arrived |= 1 << lane;
        meeting.operands[lane as usize] = operands;
        if meeting.arrived != meeting.mask {
            return Ok(None);
        }
        Ok(Some(state.meetings.swap_remove(index).operands))
    }
}

/// `bar.warp.sync`: orders memory between the lanes of `mask`.
#[track_caller]
pub fn sync(mask: u32) {
    partial("sync_warp", Location::caller(), mask, &mut (), |block, arrived| {
        let first = block.current / 32 * 32;
        let taking_part = (first..).zip(arrived).filter(|(_, operands)| operands.is_some());
        let threads: Vec<u32> = taking_part.map(|(thread, _)| thread).collect();
        let mut gather = Gather::default();
        for thread in &threads {
            gather.add(&mut block.threads[*thread as usize].view);
        }
        let released = gather.finish();
        for thread in threads {
            block.threads[thread as usize].view.adopt(&released);
        }
        Ok(Outcome::Go)
    });
}

/// A lane's value and what else it passes; nothing of lanes that take no part.
type Passed = [Option<[u32; 2]>; 32];

/// Each lane's value, replaced by what `result` makes of its number and all lanes' values.
fn exchange(
    name: &'static str,
    site: Site,
    mask: u32,
    value: [u32; 2],
    result: impl Fn(usize, &Passed) -> Checked<u32>,
) -> u32 {
    let mut operands = value;
    partial(name, site, mask, &mut operands, |_, arrived| {
        let values: Passed = std::array::from_fn(|lane| arrived[lane].as_deref().copied());
        for (lane, operands) in arrived.iter_mut().enumerate() {
            if let Some(operands) = operands {
                operands[0] = result(lane, &values)?;
            }
        }
        Ok(Outcome::Go)
    });
    operands[0]
}

/// What lane `source` passed.
fn taken(name: &str, lane: usize, source: u32, passed: &Passed) -> Checked<u32> {
    let value = passed.get(source as usize).copied().flatten();
    value.map(|[value, _]| value).ok_or_else(|| {
        let text =
            format!("lane {lane} takes the value of lane {source}, which is not in this {name}");
        Fault::new(Cause::Operand, text)
    })
}

/// `shfl.sync.bfly`: the value of lane `lane ^ lane_mask`.
pub fn shuffle_xor(mask: u32, value: u32, lane_mask: u32, site: Site) -> u32 {
    exchange("shuffle_xor", site, mask, [value, lane_mask], |lane, passed| {
        let [_, lane_mask] = passed[lane].expect("a lane that takes part");
        taken("shuffle_xor", lane, (lane as u32 ^ lane_mask) % 32, passed)
    })
}

/// `shfl.sync.idx`: the value of lane `lane`.
pub fn shuffle_idx(mask: u32, value: u32, lane: u32, site: Site) -> u32 {
    exchange("shuffle_idx", site, mask, [value, lane], |lane, passed| {
        let [_, source] = passed[lane].expect("a lane that takes part");
        taken("shuffle_idx", lane, source, passed)
    })
}

/// Bit `l` is what lane `l` passed.
fn votes(passed: &Passed) -> u32 {
    let bits = passed.iter().rev();
    bits.fold(0, |mask, bit| mask << 1 | bit.map_or(0, |[bit, _]| bit))
}

fn vote(
    name: &'static str,
    site: Site,
    mask: u32,
    predicate: bool,
    result: impl Fn(u32) -> u32,
) -> u32 {
    let value = [u32::from(predicate), 0];
    exchange(name, site, mask, value, |_, passed| Ok(result(votes(passed))))
}

/// `vote.sync.ballot`: bit `l` is what lane `l` passed.
#[track_caller]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    vote("ballot", Location::caller(), mask, predicate, |votes| votes)
}

/// `vote.sync.any`.
#[track_caller]
pub fn any(mask: u32, predicate: bool) -> bool {
    vote("any", Location::caller(), mask, predicate, |votes| u32::from(votes != 0)) != 0
}

/// `vote.sync.all`.
#[track_caller]
pub fn all(mask: u32, predicate: bool) -> bool {
    let all = |votes| u32::from(votes == mask);
    vote("all", Location::caller(), mask, predicate, all) != 0
}

/// `elect.sync`: true in one lane, the same for all elections of a launch.
#[track_caller]
pub fn elect_one(mask: u32) -> bool {
    let site = Location::caller();
    // PTX leaves open which lane; the seed decides.
    let start = instruction(site, |block| Ok(block.grid.seed as u32 % 32));
    let elected = (mask.rotate_right(start).trailing_zeros() + start) % 32;
    exchange("elect_one", site, mask, [0; 2], |lane, _| Ok(u32::from(lane as u32 == elected))) != 0
}
