//! Shuffles, votes and barriers.

use super::{own_words, store_own_words};
use device::warp::FULL_MASK;
use device::{global, shared, thread, warp};
use kernel_macros::kernel;

/// One warp. `input: [32][2]`: a value, and the lane to read. `output: [32][7]`: the value of lane
/// `lane ^ m` for m = 1, 2, 4, 8, 16, 31, then that of the lane named.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 32,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_shuffles)
)]
#[inline(always)]
pub unsafe fn shuffles(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's; the warp is whole.
    unsafe {
        let [value, lane] = own_words(input);
        let words = [
            warp::warp_shuffle_xor(FULL_MASK, value, 1),
            warp::warp_shuffle_xor(FULL_MASK, value, 2),
            warp::warp_shuffle_xor(FULL_MASK, value, 4),
            warp::warp_shuffle_xor(FULL_MASK, value, 8),
            warp::warp_shuffle_xor(FULL_MASK, f32::from_bits(value), 16).to_bits(),
            warp::warp_shuffle_xor(FULL_MASK, value, 31),
            warp::warp_shuffle_idx(FULL_MASK, value, lane),
        ];
        store_own_words(output, words);
    }
}

/// Two warps. `input: [64]`: 0 or 1. `output: [64][5]`: ballot, any, all, the number of lanes elected, and the
/// warp's index.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_votes)
)]
#[inline(always)]
pub unsafe fn votes(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's; the warps are whole.
    unsafe {
        let [bit] = own_words(input);
        let words = [
            warp::warp_vote_ballot(FULL_MASK, bit != 0),
            warp::warp_vote_any(FULL_MASK, bit != 0) as u32,
            warp::warp_vote_all(FULL_MASK, bit != 0) as u32,
            warp::warp_vote_ballot(FULL_MASK, warp::elect_one(FULL_MASK)).count_ones(),
            warp::warp_id(),
        ];
        store_own_words(output, words);
    }
}

/// Four warps. `input: [128]`, `output: [128]`: warps 0 and 1 hand their values to warps 2 and 3 through
/// shared memory and barrier 1; those give them back, each doubled, through barrier 2 to warps 0 and 1, which
/// write them; warps 2 and 3 write their own values.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 128,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_barriers)
)]
#[inline(always)]
pub unsafe fn barriers(input: *const u32, output: *mut u32) {
    let index = thread::thread_idx_x();
    let base = shared::dynamic_shared_mem::<u32>();
    let [forth, back] = [base.at(index % 64), base.at(64 + 63 - index % 64)];
    // SAFETY: the caller's; warps take one way or the other as a whole.
    unsafe {
        let [value] = own_words(input);
        let result = if index < 64 {
            forth.store(value);
            thread::named_barrier_arrive::<1>(128);
            thread::named_barrier_sync::<2>(128);
            back.load()
        } else {
            thread::named_barrier_sync::<1>(128);
            base.at(64 + index % 64).store(2 * forth.load());
            thread::named_barrier_arrive::<2>(128);
            value
        };
        global::store_u32(output.add(index as usize), result);
    }
}
