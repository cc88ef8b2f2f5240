//! Barriers, shuffles and order between threads.

use device::atomic::{self, Scope};
use device::emulator::{Cause, Launch, Memory};
use device::shared::dynamic_shared_mem;
use device::warp::FULL_MASK;
use device::{global, thread, warp};

use super::{finds, finds_one_of};

/// Writes the value that the mirrored thread stored, with something between.
fn mirror(output: *mut u32, between: impl Fn()) {
    let index = thread::thread_idx_x();
    let base = dynamic_shared_mem::<u32>();
    // SAFETY: the emulator checks every access.
    unsafe {
        base.at(index).store(index);
        between();
        let value = base.at(127 - index).load();
        global::store_u32(output.add(index as usize), value);
    }
}

#[test]
fn a_dropped_sync_threads() {
    // A read of nothing, or a read or write in no order.
    finds_one_of(
        |_, output, bug| {
            mirror(output, || {
                if !bug {
                    // SAFETY: all threads come here.
                    unsafe { thread::sync_threads() }
                }
            });
        },
        &[Cause::Race, Cause::Unwritten],
        &["shared memory at +0x"],
    );
}

#[test]
fn a_dropped_sync_threads_where_memory_was_written_before() {
    finds(
        |_, output, bug| {
            let own = dynamic_shared_mem::<u32>().at(thread::thread_idx_x());
            // SAFETY: the emulator checks every access.
            unsafe {
                own.store(0);
                thread::sync_threads();
            }
            mirror(output, || {
                if !bug {
                    // SAFETY: all threads come here.
                    unsafe { thread::sync_threads() }
                }
            });
        },
        Cause::Race,
        &["shared memory at +0x", "synchronisation.rs", "nothing orders the two"],
    );
}

#[test]
fn a_warp_barrier_where_a_block_barrier_is_needed() {
    finds(
        |_, output, bug| {
            let own = dynamic_shared_mem::<u32>().at(thread::thread_idx_x());
            // SAFETY: the emulator checks every access.
            unsafe {
                own.store(0);
                thread::sync_threads();
                mirror(output, || {
                    if bug {
                        warp::sync_warp(FULL_MASK);
                    } else {
                        thread::sync_threads();
                    }
                });
            }
        },
        Cause::Race,
        &["nothing orders the two"],
    );
}

#[test]
fn a_shuffle_taken_for_a_warp_barrier() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            let base = dynamic_shared_mem::<u32>().at(index / 32 * 32);
            // SAFETY: the emulator checks every access.
            unsafe {
                base.at(index % 32).store(index);
                if bug {
                    warp::warp_shuffle_xor(FULL_MASK, index, 1);
                } else {
                    warp::sync_warp(FULL_MASK);
                }
                let value = base.at(31 - index % 32).load();
                global::store_u32(output.add(index as usize), value);
            }
        },
        Cause::Race,
        &["nothing orders the two"],
    );
}

#[test]
fn a_shuffle_that_one_lane_does_not_reach() {
    finds(
        |input, output, bug| {
            let index = thread::thread_idx_x();
            // SAFETY: the emulator checks every access.
            unsafe {
                let mut value = global::load_u32(input.add(index as usize));
                if !(bug && index == 40) {
                    value = warp::warp_shuffle_xor(FULL_MASK, value, 1);
                }
                global::store_u32(output.add(index as usize), value);
            }
        },
        Cause::Divergence,
        &["shuffle_xor", "lane"],
    );
}

#[test]
fn a_barrier_that_half_a_warp_does_not_reach() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            // SAFETY: the emulator checks every access.
            unsafe {
                if bug && index % 32 < 16 {
                    thread::named_barrier_sync::<2>(128);
                } else {
                    thread::named_barrier_sync::<1>(128);
                }
                global::store_u32(output.add(index as usize), index);
            }
        },
        Cause::Divergence,
        &["named_barrier_sync", "synchronisation.rs"],
    );
}

#[test]
fn a_barrier_that_a_warp_does_not_reach() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            // SAFETY: the emulator checks every access.
            unsafe {
                if !(bug && index >= 96) {
                    thread::named_barrier_sync::<1>(128);
                }
                global::store_u32(output.add(index as usize), index);
            }
        },
        Cause::Deadlock,
        &[
            "threads 0-95: barrier 1, 96 of 128 threads have arrived at",
            "threads 96-127 have exited",
        ],
    );
}

#[test]
fn a_barrier_named_with_two_counts() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            // SAFETY: the emulator checks every access.
            unsafe {
                let threads = if bug && index < 32 { 64 } else { 128 };
                thread::named_barrier_sync::<3>(threads);
                global::store_u32(output.add(index as usize), index);
            }
        },
        Cause::Barrier,
        &["barrier 3 is named with"],
    );
}

/// Two blocks: the second waits for the first one's flag.
fn handshake(resident: u32) -> Result<(), Box<device::emulator::Report>> {
    let mut memory = Memory::new();
    let flag = memory.buffer("flag", &[0_u32]);
    let data = memory.buffer("data", &[0_u32]);
    Launch::new([2, 1, 1], 32).resident(resident).seed(5).run(&mut memory, || {
        if thread::thread_idx_x() > 0 {
            return;
        }
        let (flag, data) = (flag.as_mut_ptr(), data.as_mut_ptr());
        // SAFETY: the emulator checks every access.
        unsafe {
            // Block 0 waits for block 1, which may not have started.
            if thread::block_idx_x() == 1 {
                global::store_u32(data, 7);
                atomic::store_release_u32(flag, 1, Scope::Device);
            } else {
                while atomic::load_acquire_u32(flag, Scope::Device) == 0 {}
                global::load_u32(data);
            }
        }
    })
}

#[test]
fn a_block_that_waits_for_one_that_cannot_start() {
    handshake(2).unwrap();
    let report = handshake(1).unwrap_err();
    assert_eq!(report.cause, Cause::Deadlock, "{report}");
    assert!(
        report.message.contains("thread 0: polling with load_acquire_u32")
            || report.message.contains("threads 0: polling with load_acquire_u32"),
        "{report}"
    );
}
