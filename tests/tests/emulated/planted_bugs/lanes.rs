//! Warp instructions of some lanes, and the registers that warpgroups deal out.

use device::emulator::{Cause, Launch, Memory, Report};
use device::shared::dynamic_shared_mem;
use device::warp::{self, FULL_MASK};
use device::{global, register, thread};

use super::finds;

/// The mask of the lane's half of the warp.
fn half_of(lane: u32) -> u32 {
    0xffff << (lane / 16 * 16)
}

#[test]
fn a_lane_that_is_not_in_its_own_mask() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            let mask = if bug { 0xffff } else { FULL_MASK };
            // SAFETY: the emulator checks every access.
            unsafe {
                let vote = warp::warp_vote_any(mask, index == 3);
                global::store_u32(output.add(index as usize), vote.into());
            }
        },
        Cause::Divergence,
        &["is in any of lanes 0-15, and not one of them", "lanes.rs"],
    );
}

#[test]
fn halves_of_a_warp_that_part_ways_with_a_full_mask() {
    finds(
        |input, output, bug| {
            let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
            let mask = if bug { FULL_MASK } else { half_of(lane) };
            // SAFETY: the emulator checks every access.
            unsafe {
                let value = global::load_u32(input.add(index as usize));
                let other = if lane < 16 {
                    warp::warp_shuffle_xor(mask, value, 1)
                } else {
                    warp::warp_shuffle_xor(mask, value, 2)
                };
                global::store_u32(output.add(index as usize), other);
            }
        },
        Cause::Divergence,
        &["is in shuffle_xor while lanes"],
    );
}

#[test]
fn lanes_that_name_different_masks() {
    finds(
        |_, output, bug| {
            let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
            let mask = if bug && lane < 8 { 0xffff } else { FULL_MASK };
            // SAFETY: the emulator checks every access.
            unsafe {
                warp::sync_warp(mask);
                global::store_u32(output.add(index as usize), index);
            }
        },
        Cause::Divergence,
        &["in sync_warp, where lanes", "0-15"],
    );
}

#[test]
fn a_shuffle_from_a_lane_that_takes_no_part() {
    finds(
        |input, output, bug| {
            let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
            // SAFETY: the emulator checks every access.
            unsafe {
                let value = global::load_u32(input.add(index as usize));
                let step = if bug { 16 } else { 8 };
                let other = warp::warp_shuffle_xor(half_of(lane), value, step);
                global::store_u32(output.add(index as usize), other);
            }
        },
        Cause::Operand,
        &["takes the value of lane", "which is not in this shuffle_xor"],
    );
}

#[test]
fn a_lane_that_exits_while_its_half_waits_for_it() {
    finds(
        |_, output, bug| {
            let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
            // SAFETY: the emulator checks every access.
            unsafe {
                global::store_u32(output.add(index as usize), index);
                if lane >= 16 && !(bug && lane == 20) {
                    warp::sync_warp(half_of(lane));
                }
            }
        },
        Cause::Divergence,
        &["sync_warp", "exit"],
    );
}

#[test]
fn a_barrier_of_half_a_warp_that_does_not_order_the_other_half() {
    finds(
        |_, output, bug| {
            let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
            let words = dynamic_shared_mem::<u32>();
            let across = if bug { 31 } else { 15 };
            // SAFETY: the emulator checks every access.
            unsafe {
                words.at(index).store(0);
                thread::sync_threads();
                words.at(index).store(index);
                warp::sync_warp(half_of(lane));
                let value = words.at(index ^ across).load();
                global::store_u32(output.add(index as usize), value);
            }
        },
        Cause::Race,
        &["shared memory at +0x", "nothing orders the two"],
    );
}

/// Three warpgroups: two ask for registers that the third gives back.
fn dealt<const MORE: u32, const LESS: u32>(launch: Launch) -> Result<(), Box<Report>> {
    // SAFETY: whole warpgroups take one way or the other.
    launch.run(&mut Memory::new(), || unsafe {
        if thread::thread_idx_x() < 256 {
            register::set_max_inc::<MORE>();
        } else {
            register::set_max_dec::<LESS>();
        }
    })
}

fn warpgroups(seed: u64) -> Launch {
    Launch::new([1, 1, 1], 384).seed(seed)
}

#[test]
fn warpgroups_that_ask_for_more_registers_than_a_multiprocessor_has() {
    for seed in 0..16 {
        dealt::<232, 40>(warpgroups(seed)).unwrap();
        let report = dealt::<240, 40>(warpgroups(seed)).unwrap_err();
        assert_eq!(report.cause, Cause::Deadlock, "{report}");
        let text = report.to_string();
        assert!(text.contains("for 240 registers a thread"), "{text}");
    }
}

#[test]
fn warpgroups_that_ask_for_more_registers_than_their_launch_has() {
    for seed in 0..16 {
        dealt::<168, 48>(warpgroups(seed).registers(128)).unwrap();
        let report = dealt::<232, 40>(warpgroups(seed).registers(128)).unwrap_err();
        assert_eq!(report.cause, Cause::Deadlock, "{report}");
    }
}

#[test]
fn registers_given_back_that_the_warpgroup_does_not_have() {
    for seed in 0..16 {
        let report = dealt::<232, 176>(warpgroups(seed)).unwrap_err();
        assert_eq!(report.cause, Cause::Operand, "{report}");
        let text = report.to_string();
        assert!(text.contains("setmaxnreg.dec to 176 registers, of 168"), "{text}");
    }
}

#[test]
fn a_warp_that_leaves_out_its_warpgroups_request() {
    let run = |seed, bug: bool| {
        let launch = Launch::new([1, 1, 1], 128).seed(seed);
        // SAFETY: the emulator checks it.
        launch.run(&mut Memory::new(), || unsafe {
            if !(bug && thread::thread_idx_x() / 32 == 2) {
                register::set_max_dec::<40>();
            }
        })
    };
    for seed in 0..16 {
        run(seed, false).unwrap();
        let report = run(seed, true).unwrap_err();
        assert_eq!(report.cause, Cause::Divergence, "{report}");
        assert!(report.message.contains("warp 2 never comes to"), "{report}");
    }
}
