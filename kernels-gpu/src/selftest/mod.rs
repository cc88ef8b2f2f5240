//! Kernels that exercise the device module, an instruction each, so that the emulator and a GPU can be held
//! against plain definitions and against each other. The definitions are in the `tests` crate.
//!
//! Every kernel is `(input: *const u32, output: *mut u32)`. Unless it says otherwise it is launched as one
//! block, thread `t` reads its own words of `input` and writes its own words of `output`, and floats are
//! passed as their bits.

mod arithmetic;
mod copies;
mod lanes;
mod matrices;
mod ordering;
mod warpgroup;

use device::shared::Shared;
use device::{global, thread};

pub use arithmetic::{arithmetic, conversions, pairs};
pub use copies::{async_copies, bulk_copies, global_widths, shared_widths};
pub use lanes::{barriers, shuffles, votes};
pub use matrices::{ldmatrix, mma, stmatrix};
pub use ordering::{last_arriver, message};
pub use warpgroup::{Warpgroup, wgmma_registers, wgmma_shared};

/// Dynamic shared memory of each of these kernels, in bytes.
pub const SHARED_BYTES: u32 = 64 * 1024;

/// Copies the first `words` words of `input` into shared memory at `base`, by all threads of the block,
/// visible to all of them and to the async proxy.
///
/// # Safety
/// `input` has that many words, as has shared memory.
#[inline(always)]
unsafe fn fill_shared(base: Shared<u32>, input: *const u32, words: u32) {
    let mut index = thread::thread_idx_x();
    // SAFETY: the caller's.
    unsafe {
        while index < words {
            base.at(index).store(global::load_u32(input.add(index as usize)));
            index += thread::block_dim_x();
        }
        device::bulk::fence_proxy_async_shared();
        thread::sync_threads();
    }
}

/// `COUNT` words of this thread, `input: [threads][COUNT]`.
///
/// # Safety
/// `input` is as long.
#[inline(always)]
unsafe fn own_words<const COUNT: usize>(input: *const u32) -> [u32; COUNT] {
    let first = thread::thread_idx_x() as usize * COUNT;
    // SAFETY: the caller's.
    core::array::from_fn(|i| unsafe { global::load_u32(input.add(first + i)) })
}

/// Stores `COUNT` words of this thread, `output: [threads][COUNT]`.
///
/// # Safety
/// `output` is as long.
#[inline(always)]
unsafe fn store_own_words<const COUNT: usize>(output: *mut u32, words: [u32; COUNT]) {
    let first = thread::thread_idx_x() as usize * COUNT;
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { global::store_u32(output.add(first + i), word) };
    }
}
