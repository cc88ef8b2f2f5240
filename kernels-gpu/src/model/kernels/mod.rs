//! The kernels. The figures that the host needs too are in [`super::limits`].

mod best;
mod block;
mod embed;
mod entries;
mod feed;
mod fill;
mod noise;
mod norm;
mod part;
mod pick;
mod rank;
mod rotate_append;
mod silu;

use super::limits::{CHUNK, THREADS};
use crate::cache::Chunk;
use device::{Element, global, math, thread};

pub use best::{BestRows, BestState, best_collect, best_count, best_emit, best_rows};
pub use embed::embed;
pub use feed::{Feed, feed};
pub use fill::{fill, fill_f32};
pub use noise::Sampling;
pub use norm::{Norm, add_rms_norm, rms_norm};
pub use part::{MergeTopK, TopKPart, merge_top_k, sample_part, top_k_part};
pub use pick::{Pick, pick_tokens};
pub use rank::{TopK, log_softmax_top_k, sample_top_k};
pub use rotate_append::{Qkv, rotate_append};
pub use silu::silu_mul;

/// A chunk's elements.
type Values = [f32; CHUNK as usize];

/// This thread's row and first dim, if it has a chunk of an array `[rows, width]`.
#[inline(always)]
fn chunk_of_row(rows: u32, width: u32) -> Option<(u32, u32)> {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let chunks = width / CHUNK;
    let row = index / chunks;
    (row < rows).then_some((row, index % chunks * CHUNK))
}

/// # Safety
/// `source` is valid for eight reads and 16-byte aligned.
#[inline(always)]
unsafe fn load_chunk(source: *const u16) -> Chunk {
    // SAFETY: the caller's.
    unsafe { global::load_v4_u32(source.cast()) }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    math::reciprocal(1.0 + math::exp2(-x * core::f32::consts::LOG2_E))
}

#[inline(always)]
fn unpack_chunk<E: Element>(data: Chunk) -> Values {
    let pairs = data.map(|word| math::unpack::<E>(word));
    core::array::from_fn(|i| pairs[i / 2][i % 2])
}

#[inline(always)]
fn pack_chunk<E: Element>(values: Values) -> Chunk {
    core::array::from_fn(|i| math::pack::<E>(values[2 * i], values[2 * i + 1]))
}

/// # Safety
/// `source` is valid for eight reads and 16-byte aligned.
#[inline(always)]
unsafe fn load_chunk_f32(source: *const f32) -> Values {
    // SAFETY: the caller's.
    let halves = [0, 4].map(|i| unsafe { global::load_v4_f32(source.add(i)) });
    core::array::from_fn(|i| halves[i / 4][i % 4])
}

/// # Safety
/// `target` is valid for eight writes and 16-byte aligned.
#[inline(always)]
unsafe fn store_chunk_f32(target: *mut f32, v: Values) {
    // SAFETY: the caller's.
    unsafe {
        global::store_v4_f32(target, [v[0], v[1], v[2], v[3]]);
        global::store_v4_f32(target.add(4), [v[4], v[5], v[6], v[7]]);
    }
}
