//! What all threads of a block find out together, in a fixed order.

use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{thread, warp};

/// The sum of all threads' values, the same bits in all of them. `scratch` has a word for each of `WARPS` warps.
///
/// # Safety
/// All threads of the block call it together; nothing else uses `scratch`. `WARPS` is a power of two up to 32.
#[inline(always)]
pub(super) unsafe fn sum<const WARPS: u32>(value: f32, scratch: Shared<f32>) -> f32 {
    const { assert!(WARPS.is_power_of_two() && WARPS <= 32) }
    // SAFETY: the warp is whole, words of the scratch, and the barrier is reached by all.
    unsafe {
        let own = warp_sum(value, 16);
        if warp::lane_id() == 0 {
            scratch.at(thread::thread_idx_x() / 32).store(own);
        }
        thread::sync_threads();
        warp_sum(scratch.at(warp::lane_id() % WARPS).load(), WARPS / 2)
    }
}

/// The sum over groups of `2 * step` neighbouring lanes.
///
/// # Safety
/// The warp is whole.
#[inline(always)]
unsafe fn warp_sum(mut value: f32, mut step: u32) -> f32 {
    while step > 0 {
        // SAFETY: the caller's.
        value += unsafe { warp::warp_shuffle_xor(FULL_MASK, value, step) };
        step /= 2;
    }
    value
}
