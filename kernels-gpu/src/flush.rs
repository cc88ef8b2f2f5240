//! Reads a buffer larger than the L2 cache, so that what a benchmark times next finds the cache cold.

use device::thread::{block_dim_x, block_idx_x, grid_dim_x, thread_idx_x};
use kernel_macros::kernel;

/// 16 bytes: one load.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct Quad([u32; 4]);

/// Reads `data: [vectors]`, all blocks together. `sink: [1]` is written only if the words' xor is a value
/// that zeroed data does not have, which keeps the compiler from dropping the reads.
///
/// # Safety
/// `data` is valid for reads of `vectors` values, `sink` for a write of one.
#[kernel(threads = 512, min_blocks = 2, group = "bench", instances(read_flush))]
#[inline(always)]
pub unsafe fn read_all(data: *const Quad, vectors: u32, sink: *mut u32) {
    let mut index = block_idx_x() * block_dim_x() + thread_idx_x();
    let mut sum = 0;
    while index < vectors {
        // SAFETY: `index` is below `vectors`.
        let Quad([a, b, c, d]) = unsafe { *data.add(index as usize) };
        sum ^= a ^ b ^ c ^ d;
        index += block_dim_x() * grid_dim_x();
    }
    if sum == 1 {
        // SAFETY: the caller vouches for one value.
        unsafe { *sink = sum };
    }
}
