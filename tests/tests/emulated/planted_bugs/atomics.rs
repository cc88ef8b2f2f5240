//! Atomics, their orders and scopes, and fences.

use device::atomic::{self, Order, Scope};
use device::emulator::{Cause, Launch, Memory, Report};
use device::{global, thread};

/// What two blocks do with a flag and a datum.
type Blocks = fn(flag: *mut u32, data: *mut u32, bug: bool);

/// Runs two blocks of a thread each that wait for one another. The other lanes do nothing.
fn run(kernel: Blocks, bug: bool, seed: u64) -> Result<u32, Box<Report>> {
    let mut memory = Memory::new();
    let flag = memory.buffer("flag", &[0_u32]);
    let data = memory.buffer("data", &[0_u32]);
    Launch::new([2, 1, 1], 32).resident(2).seed(seed).run(&mut memory, || {
        if thread::thread_idx_x() == 0 {
            kernel(flag.as_mut_ptr(), data.as_mut_ptr(), bug);
        }
    })?;
    Ok(memory.read(data).map_err(Box::new)?[0])
}

/// Asserts that the kernel leaves `result` in `data`, and that its bug is a race on `buffer`, with every seed.
#[track_caller]
fn races(kernel: Blocks, result: u32, buffer: &str) {
    for seed in 0..16 {
        match run(kernel, false, seed) {
            Ok(data) => assert_eq!(data, result, "seed {seed}"),
            Err(report) => panic!("without the bug: {report}"),
        }
        let report = run(kernel, true, seed).expect_err("the bug was not found");
        assert_eq!(report.cause, Cause::Race, "{report}");
        assert!(report.message.contains(buffer), "{report}");
    }
}

/// Block 0 writes the datum and sets the flag after `release`; block 1 waits for the flag, and after `acquire` adds
/// one to the datum.
fn message(flag: *mut u32, data: *mut u32, release: impl Fn(), acquire: impl Fn()) {
    // SAFETY: the emulator checks every access.
    unsafe {
        if thread::block_idx_x() == 0 {
            global::store_u32(data, 7);
            release();
            atomic::store_relaxed_u32(flag, 1, Scope::Device);
        } else {
            while atomic::load_relaxed_u32(flag, Scope::Device) == 0 {}
            acquire();
            global::store_u32(data, global::load_u32(data) + 1);
        }
    }
}

#[test]
fn a_relaxed_flag_without_a_fence_before_it_is_set() {
    races(
        |flag, data, bug| {
            let release = || {
                if !bug {
                    thread::device_fence();
                }
            };
            message(flag, data, release, thread::device_fence);
        },
        8,
        "buffer `data`",
    );
}

#[test]
fn a_relaxed_flag_without_a_fence_after_it_is_seen() {
    races(
        |flag, data, bug| {
            let acquire = || {
                if !bug {
                    thread::device_fence();
                }
            };
            message(flag, data, thread::device_fence, acquire);
        },
        8,
        "buffer `data`",
    );
}

#[test]
fn a_fence_for_the_block_where_blocks_talk() {
    races(
        |flag, data, bug| {
            let release = if bug { thread::block_fence } else { thread::system_fence };
            message(flag, data, release, thread::device_fence);
        },
        8,
        "buffer `data`",
    );
}

#[test]
fn a_flag_that_is_set_by_an_ordinary_store() {
    races(
        |flag, data, bug| {
            // SAFETY: the emulator checks every access.
            unsafe {
                if thread::block_idx_x() == 0 {
                    global::store_u32(data, 7);
                    if bug {
                        global::store_u32(flag, 1);
                    } else {
                        atomic::store_release_u32(flag, 1, Scope::Device);
                    }
                } else {
                    while atomic::load_acquire_u32(flag, Scope::Device) == 0 {}
                }
            }
        },
        7,
        "buffer `flag`",
    );
}

/// Both blocks add to the datum, under a lock that is released in `order`.
fn locked(lock: *mut u32, data: *mut u32, order: Order, scope: Scope) {
    // SAFETY: the emulator checks every access.
    unsafe {
        while atomic::compare_exchange_u32(lock, 0, 1, Order::Acquire, scope) != 0 {}
        global::store_u32(data, global::load_u32(data) + 1);
        atomic::exchange_u32(lock, 0, order, scope);
    }
}

#[test]
fn a_lock_that_is_not_released_but_only_opened() {
    races(
        |lock, data, bug| {
            let order = if bug { Order::Relaxed } else { Order::Release };
            locked(lock, data, order, Scope::Device);
        },
        2,
        "buffer `data`",
    );
}

#[test]
fn a_lock_for_the_block_where_blocks_share() {
    races(
        |lock, data, bug| {
            let scope = if bug { Scope::Block } else { Scope::Device };
            locked(lock, data, Order::Release, scope);
        },
        2,
        "buffer `data`",
    );
}

#[test]
fn a_counter_that_one_block_reads_without_an_atomic() {
    races(
        |_, data, bug| {
            // SAFETY: the emulator checks every access.
            unsafe {
                if bug && thread::block_idx_x() == 1 {
                    global::store_u32(data, global::load_u32(data) + 1);
                } else {
                    atomic::fetch_add_u32(data, 1, Order::Relaxed, Scope::Device);
                }
            }
        },
        2,
        "buffer `data`",
    );
}
