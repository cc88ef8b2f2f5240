//! The kernels. The figures that the host needs too are in [`super::limits`].

mod block;
mod embed;
mod feed;
mod fill;
mod noise;
mod norm;
mod rank;
mod rotate_append;
mod silu;

use super::limits::{CHUNK, THREADS};
use crate::abi::AppendTarget;
use crate::cache::Chunk;
use device::kernel;
use device::{Bf16, Element, F16, global, math, thread};

pub use embed::embed;
pub use feed::{Feed, feed};
pub use fill::{fill, fill_f32};
pub use noise::Sampling;
pub use norm::{Norm, rms_norm};
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

macro_rules! element_entries {
    ($($element:ty: $embed:ident, $norm:ident, $silu:ident, $fill:ident;)+) => {
        kernel! { $(
            unsafe fn $embed(tokens: *const u32, table: *const u16, x: *mut f32, rows: u32, hidden: u32) =
                embed::<$element>;
            unsafe fn $norm(
                x: *const f32, picks: *const u32, weight: *const f32, out: *mut u16, hidden: u32, eps: f32,
            ) = |x, picks, weight, out, hidden, eps| {
                rms_norm::<$element>(Norm { x, picks, weight, out, hidden, eps })
            };
            unsafe fn $silu(gate_up: *const u16, out: *mut u16, rows: u32, ffn: u32) = silu_mul::<$element>;
            unsafe fn $fill(out: *mut u16, chunks: u64, seed: u64, scale: f32) = fill::<$element>;
        )+ }
    };
}
element_entries! {
    Bf16: embed_bf16, rms_norm_bf16, silu_mul_bf16, fill_random_bf16;
    F16: embed_f16, rms_norm_f16, silu_mul_f16, fill_random_f16;
}

macro_rules! rotate_append_entries {
    ($($name:ident, $element:ty, $d:literal;)+) => {
        kernel! { $(
            unsafe fn $name(
                qkv: *const u16, q: *mut u16, pool: *mut u16, targets: *const AppendTarget, lengths: *const u32,
                tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
                q_heads: u32, kv_heads: u32,
            ) = |qkv, q, pool, targets, lengths, tail_pages, positions, cos, sin, count, q_heads, kv_heads| {
                rotate_append::<$element, $d>(Qkv {
                    qkv, q, pool, targets, lengths, tail_pages, positions, cos, sin, count, q_heads, kv_heads,
                })
            };
        )+ }
    };
}
rotate_append_entries! {
    rotate_append_bf16_d64, Bf16, 64;
    rotate_append_bf16_d128, Bf16, 128;
    rotate_append_bf16_d256, Bf16, 256;
    rotate_append_f16_d64, F16, 64;
    rotate_append_f16_d128, F16, 128;
    rotate_append_f16_d256, F16, 256;
}

kernel! {
    unsafe fn log_softmax_top_k(
        logits: *const f32, ids: *mut u32, log_probs: *mut f32, vocab: u32, k: u32,
    ) = |logits, ids, log_probs, vocab, k| {
        rank::log_softmax_top_k(TopK { logits, ids, log_probs, vocab, k })
    };
    unsafe fn sample_top_k(
        logits: *const f32, ids: *mut u32, log_probs: *mut f32, vocab: u32, k: u32, streams: *const u32,
        steps: *const u32, seed: u64, temperature: f32,
    ) = |logits, ids, log_probs, vocab, k, streams, steps, seed, temperature| {
        rank::sample_top_k(
            TopK { logits, ids, log_probs, vocab, k },
            Sampling { streams, steps, seed, temperature },
        )
    };
    unsafe fn feed_tokens(
        next: *const u32, targets: *const AppendTarget, tokens: *mut u32, positions: *mut u32,
        history: *mut u32, history_len: u32, next_stride: u32, count: u32,
    ) = |next, targets, tokens, positions, history, history_len, next_stride, count| {
        feed(Feed { next, targets, tokens, positions, history, history_len, next_stride, count })
    };
    unsafe fn fill_random_f32(out: *mut f32, chunks: u64, seed: u64, scale: f32) = fill_f32;
}
