//! One more token for growing nodes.

use super::THREADS;
use crate::abi::{APPEND_LIVE, AppendTarget, NONE};
use device::{global, thread};
use kernel_macros::kernel;

/// Adds 1 to the length counter of each of `targets: [count]` that names one; a thread each. Once a decode
/// step, before the first layer's append.
///
/// # Safety
/// `targets` is valid for `count` reads. Each target that names a counter names another one, within
/// `lengths`.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(advance_counters)
)]
#[inline(always)]
pub unsafe fn advance(targets: *const AppendTarget, count: u32, lengths: *mut u32) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    if index >= count {
        return;
    }
    // SAFETY: `index` is below `count`.
    let target = unsafe { global::load_u32(targets.add(index as usize)) };
    if target == NONE || target & APPEND_LIVE == 0 {
        return;
    }
    // SAFETY: the counter exists, and no other thread's target names it.
    unsafe {
        let length = lengths.add((target & !APPEND_LIVE) as usize);
        global::store_u32(length, global::load_u32(length) + 1);
    }
}
