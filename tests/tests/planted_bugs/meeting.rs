//! Blocks that meet, as those of `attend` do before they merge.

use emulator::{Cause, Launch, Memory, Report};
use kernels_gpu::attention::meeting::Meeting;
use kernels_gpu::device::{global, thread};

const BLOCKS: u32 = 3;
const THREADS: u32 = 64;

/// What can be wrong with a meeting.
#[derive(Clone, Copy, Default)]
struct Bugs {
    no_barrier_before_arriving: bool,
    no_wait: bool,
    no_barrier_after_waiting: bool,
    no_leader: bool,
    /// A block that does not come.
    absent: Option<u32>,
}

/// Every thread stores a word, its block meets the others, and it reads a word of the next block's. The counter is
/// `round` before.
fn meet(seed: u64, round: u32, resident: u32, bugs: Bugs) -> Result<u32, Box<Report>> {
    let mut memory = Memory::new();
    let counter = memory.buffer("counter", &[round]);
    let words = memory.unwritten::<u32>("words", (BLOCKS * THREADS) as usize);
    Launch::new([BLOCKS, 1, 1], THREADS)
        .resident(resident)
        .seed(seed)
        .run(&mut memory, || {
            let (block, index) = (thread::block_idx_x(), thread::thread_idx_x());
            let meeting = Meeting {
                counter: counter.as_mut_ptr(),
                blocks: BLOCKS,
                leads: block == 0 && !bugs.no_leader,
            };
            if bugs.absent == Some(block) {
                return;
            }
            let place = |block: u32, thread: u32| {
                words
                    .as_mut_ptr()
                    .wrapping_add((block * THREADS + thread) as usize)
            };
            // SAFETY: the emulator checks every access; all threads of a block go the same way.
            unsafe {
                global::store_u32(place(block, index), index);
                if !bugs.no_barrier_before_arriving {
                    thread::sync_threads();
                }
                if index == 0 {
                    let arrival = meeting.arrive();
                    if !bugs.no_wait {
                        meeting.wait(arrival);
                    }
                }
                if !bugs.no_barrier_after_waiting {
                    thread::sync_threads();
                }
                global::load_u32(place((block + 1) % BLOCKS, THREADS - 1 - index));
            }
        })?;
    Ok(memory.read(counter)?[0])
}

/// Asserts that the bug is found under every schedule, as one of `causes`.
#[track_caller]
fn finds(bugs: Bugs, causes: &[Cause]) {
    for seed in 0..16 {
        let report = meet(seed, 0, BLOCKS, bugs).expect_err("the bug was not found");
        assert!(causes.contains(&report.cause), "{report}");
    }
}

/// What shows of a missing order depends on who comes first.
const DISORDER: &[Cause] = &[Cause::Race, Cause::Unwritten];

#[test]
fn blocks_that_meet_see_what_each_has_stored_and_leave_the_counter_for_the_next_time() {
    for seed in 0..16 {
        for round in [0, 1 << 31] {
            let after = meet(seed, round, BLOCKS, Bugs::default()).unwrap();
            assert_eq!(after, round ^ 1 << 31);
        }
    }
}

#[test]
fn an_arrival_that_does_not_release_what_the_block_has_stored() {
    let bugs = Bugs {
        no_barrier_before_arriving: true,
        ..Bugs::default()
    };
    finds(bugs, DISORDER);
}

#[test]
fn a_merge_that_does_not_wait_for_the_other_blocks() {
    let bugs = Bugs {
        no_wait: true,
        ..Bugs::default()
    };
    finds(bugs, DISORDER);
}

#[test]
fn threads_that_do_not_meet_the_one_that_has_waited() {
    let bugs = Bugs {
        no_barrier_after_waiting: true,
        ..Bugs::default()
    };
    finds(bugs, DISORDER);
}

#[test]
fn a_meeting_that_a_block_does_not_come_to() {
    for absent in 0..BLOCKS {
        let bugs = Bugs {
            absent: Some(absent),
            ..Bugs::default()
        };
        finds(bugs, &[Cause::Deadlock]);
    }
}

#[test]
fn a_meeting_that_nobody_leads() {
    let bugs = Bugs {
        no_leader: true,
        ..Bugs::default()
    };
    finds(bugs, &[Cause::Deadlock]);
}

#[test]
fn a_meeting_of_more_blocks_than_are_resident() {
    let report = meet(0, 0, BLOCKS - 1, Bugs::default()).unwrap_err();
    assert_eq!(report.cause, Cause::Deadlock, "{report}");
    assert!(
        report.message.contains("polling with ld.acquire"),
        "{report}"
    );
}
