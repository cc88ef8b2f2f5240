//! Synthetic weights, made where they are needed.

use super::{Values, pack_chunk, store_chunk_f32};
use crate::model::limits::{CHUNK, THREADS};
use crate::random::{half_to_uniform, word};
use device::{Bf16, Element, F16, global, thread};
use kernel_macros::kernel;

/// `out[i] = uniform(seed, i, scale)` (see [`crate::random`]) rounded to `E`, for `i` below `8 * chunks`.
///
/// # Safety
/// `out` is valid for that many elements and 16-byte aligned.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(
        fill_random_bf16: <Bf16>,
        fill_random_f16: <F16>
    )
)]
#[inline(always)]
pub unsafe fn fill<E: Element>(out: *mut u16, chunks: u64, seed: u64, scale: f32) {
    for_own_chunks(chunks, |chunk| {
        let data = pack_chunk::<E>(values(seed, chunk, scale));
        // SAFETY: the chunk exists.
        unsafe { global::store_v4_u32(out.add((chunk * u64::from(CHUNK)) as usize).cast(), data) };
    });
}

/// [`fill`] for f32.
///
/// # Safety
/// As there.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(fill_random_f32)
)]
#[inline(always)]
pub unsafe fn fill_f32(out: *mut f32, chunks: u64, seed: u64, scale: f32) {
    for_own_chunks(chunks, |chunk| {
        // SAFETY: the chunk exists.
        unsafe {
            store_chunk_f32(
                out.add((chunk * u64::from(CHUNK)) as usize),
                values(seed, chunk, scale),
            );
        }
    });
}

/// Calls `f` for this thread's chunks: the whole grid walks side by side.
#[inline(always)]
fn for_own_chunks(chunks: u64, f: impl Fn(u64)) {
    let threads = u64::from(thread::block_dim_x());
    let mut chunk = u64::from(thread::block_idx_x()) * threads + u64::from(thread::thread_idx_x());
    while chunk < chunks {
        f(chunk);
        chunk += threads * u64::from(thread::grid_dim_x());
    }
}

#[inline(always)]
fn values(seed: u64, chunk: u64, scale: f32) -> Values {
    let words: [u64; CHUNK as usize / 2] =
        core::array::from_fn(|i| word(seed, chunk * u64::from(CHUNK / 2) + i as u64));
    core::array::from_fn(|i| half_to_uniform((words[i / 2] >> (i % 2 * 32)) as u32, scale))
}
