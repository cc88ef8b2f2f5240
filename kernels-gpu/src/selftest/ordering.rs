//! Order between blocks.

use super::own_words;
use device::atomic::{self, Order, Scope};
use device::{global, shared, thread};
use kernel_macros::kernel;

/// Any number of blocks. `input: [threads]`, `output: [1 + blocks * threads + threads]`: a counter that is 0,
/// each block's values times its number plus one, and their sums, by the last block to arrive.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_last_arriver)
)]
#[inline(always)]
pub unsafe fn last_arriver(input: *const u32, output: *mut u32) {
    let (index, threads) = (thread::thread_idx_x(), thread::block_dim_x());
    let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    let base = shared::dynamic_shared_mem::<u32>();
    let place = |block: u32| (1 + block * threads + index) as usize;
    // SAFETY: the caller's; a block's partial values are written before it arrives.
    unsafe {
        let [value] = own_words(input);
        global::store_u32(output.add(place(block)), value * (block + 1));
        thread::sync_threads();
        if index == 0 {
            base.store(atomic::fetch_add_u32(output, 1, Order::AcqRel, Scope::Device));
        }
        thread::sync_threads();
        if base.load() == blocks - 1 {
            let mut sum = 0;
            for block in 0..blocks {
                sum += global::load_u32(output.add(place(block)));
            }
            global::store_u32(output.add(place(blocks)), sum);
        }
    }
}

/// Two blocks, both resident. `input: [threads]`, `output: [2 + 2 * threads]`: two flags that are 0, block 0's
/// values plus one, and those plus one again, by block 1, which waits for the first flag; block 0 waits for the
/// second.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_message)
)]
#[inline(always)]
pub unsafe fn message(input: *const u32, output: *mut u32) {
    let index = thread::thread_idx_x();
    let threads = thread::block_dim_x();
    // SAFETY: the caller's; values are read after the flag that follows them.
    unsafe {
        let first = output.add((2 + index) as usize);
        let second = output.add((2 + threads + index) as usize);
        if thread::block_idx_x() == 0 {
            let [value] = own_words(input);
            global::store_u32(first, value + 1);
            thread::sync_threads();
            if index == 0 {
                atomic::store_release_u32(output, 1, Scope::Device);
                while atomic::load_acquire_u32(output.add(1), Scope::Device) != threads {
                    thread::nanosleep(100);
                }
            }
        } else {
            while atomic::load_acquire_u32(output, Scope::Device) == 0 {}
            global::store_u32(second, global::load_u32(first) + 1);
            atomic::fetch_add_u32(output.add(1), 1, Order::Release, Scope::Device);
        }
    }
}
