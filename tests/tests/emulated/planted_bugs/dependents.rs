//! Launches that begin before the one they depend on has ended.

use device::atomic::{self, Order, Scope};
use device::bulk::{self, Bytes};
use device::emulator::{Cause, Launch, Memory};
use device::shared::dynamic_shared_mem;
use device::{global, grid, thread, warp};

use super::SHARED_BYTES;

/// Asserts that `access` to the buffer `data` is found with every seed before the wait, in these words, and not after
/// it.
#[track_caller]
fn waits(access: fn(data: *mut u32), words: &str) {
    let run = |bug: bool, seed| {
        let mut memory = Memory::new();
        let data = memory.buffer("data", &[1_u32; 32]);
        Launch::new([1, 1, 1], 32).shared_bytes(SHARED_BYTES).dependent().seed(seed).run(
            &mut memory,
            || {
                if !bug {
                    grid::wait_dependencies();
                }
                access(data.as_mut_ptr());
            },
        )
    };
    for seed in 0..16 {
        run(false, seed).unwrap();
        let report = run(true, seed).unwrap_err();
        assert_eq!(report.cause, Cause::Unwaited, "{report}");
        assert!(report.message.contains(words), "{report}");
    }
}

#[test]
fn a_dependent_launch_that_reads_before_it_waits() {
    waits(
        // SAFETY: the emulator checks every access.
        |data| unsafe {
            global::load_u32(data);
        },
        "reads buffer `data` before wait_dependencies",
    );
}

#[test]
fn a_dependent_launch_that_writes_before_it_waits() {
    waits(
        // SAFETY: the emulator checks every access.
        |data| unsafe { global::store_u32(data.add(thread::thread_idx_x() as usize), 2) },
        "writes buffer `data` before wait_dependencies",
    );
}

#[test]
fn a_dependent_launch_that_counts_before_it_waits() {
    waits(
        // SAFETY: the emulator checks every access.
        |data| unsafe {
            atomic::fetch_add_u32(data, 1, Order::Relaxed, Scope::Device);
        },
        "reads buffer `data` before wait_dependencies",
    );
}

#[test]
fn a_dependent_launch_that_sets_a_flag_before_it_waits() {
    waits(
        // SAFETY: the emulator checks every access.
        |data| unsafe { atomic::store_release_u32(data, 1, Scope::Device) },
        "writes buffer `data` before wait_dependencies",
    );
}

#[test]
fn a_dependent_launch_that_copies_out_before_it_waits() {
    waits(
        |data| {
            let words = dynamic_shared_mem::<u32>();
            let lane = warp::lane_id();
            // SAFETY: the emulator checks every access.
            unsafe {
                words.at(lane).store(lane);
                bulk::fence_proxy_async_shared();
                warp::sync_warp(warp::FULL_MASK);
                if lane == 0 {
                    bulk::copy_shared_to_global(data, words, Bytes::new(128));
                    bulk::commit_group();
                    bulk::wait_group::<0>();
                }
            }
        },
        "writes buffer `data` before wait_dependencies",
    );
}
