//! The fused projection's output to where attention reads it: queries to an array, K and V into pages.

use super::{Values, load_chunk_f32, pack_chunk, unpack_chunk};
use crate::abi::AppendTarget;
use crate::cache::{Chunk, kept_keys, kept_value, load_pair, place, store_pair, turn_pair};
use crate::layout::{CORE, half_page_elements, page_offset};
use crate::model::limits::THREADS;
use device::{Element, global, math, thread, warp};

/// What a `rotate_append` launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Qkv {
    /// `[count, q_heads + 2 * kv_heads, head_dim]`: queries, then keys, then values.
    pub qkv: *const u16,
    /// What is added to each row, `[q_heads + 2 * kv_heads, head_dim]`; null for nothing.
    pub bias: *const f32,
    /// Gains of the norms that every head's query and key go through, `[2, head_dim]`; null for no norms.
    pub norms: *const f32,
    /// `[count, q_heads, head_dim]`.
    pub q: *mut u16,
    /// The layer's plane of the pool.
    pub pool: *mut u16,
    /// Where each row's K and V go, `[count]`.
    pub targets: *const AppendTarget,
    /// Node lengths by slot.
    pub lengths: *const u32,
    /// Last pages by slot.
    pub tail_pages: *const u32,
    /// `[count]`.
    pub positions: *const u32,
    /// `[positions, head_dim / 2]`; null where nothing turns.
    pub cos: *const f32,
    /// As `cos`.
    pub sin: *const f32,
    /// Rows.
    pub count: u32,
    /// Query heads.
    pub q_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Added to the mean of squares of a head.
    pub eps: f32,
}

/// Adds the bias, norms queries and keys (each rounded to `E`), then rotates queries and keys of each row by its position, as [`append_rope`](crate::cache::append_rope()) does, and
/// writes queries to `q`, keys and values to where the row's target says. A row whose target is passed over there is
/// passed over here, queries included. A thread has both chunks of eight pairs of a head.
///
/// # Safety
/// As [`append_rope`](crate::cache::append_rope()); `q`, and `bias` and `norms` if they are there, are valid for their
/// shapes and 16-byte aligned.
#[inline(always)]
pub unsafe fn rotate_append<E: Element, const D: u32>(a: Qkv) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let pairs = D / 2 / CORE;
    let heads = a.q_heads + 2 * a.kv_heads;
    let row = index / (heads * pairs);
    if row >= a.count {
        return;
    }
    let head = index / pairs % heads;
    let dim = index % pairs * CORE;
    // SAFETY: the row and its head exist; where its target is, so are its position and page. Lanes of a head have one
    // row, so they stay together.
    unsafe {
        let mut pair = biased::<E, D>(a, row, head, dim);
        // Asked for before it is known to be needed: one trip to memory less.
        let position = global::load_u32(a.positions.add(row as usize));
        let target = a.targets.add(row as usize);
        let Some((page, token)) = place(target, a.lengths, a.tail_pages) else {
            return;
        };
        if head < a.q_heads + a.kv_heads {
            if !a.norms.is_null() {
                let of_key = if head < a.q_heads { 0 } else { D as usize };
                pair = norm_head::<E, D>(pair, a.norms.add(of_key), dim, a.eps);
            }
            if !a.cos.is_null() {
                turn_pair::<E, D>(&mut pair, position, a.cos, a.sin, dim);
            }
        }
        if head < a.q_heads {
            let to =
                (row as usize * a.q_heads as usize + head as usize) * D as usize + dim as usize;
            global::store_v4_u32(a.q.add(to).cast(), pair[0]);
            global::store_v4_u32(a.q.add(to + D as usize / 2).cast(), pair[1]);
            return;
        }
        let kv = head - a.q_heads;
        if kv < a.kv_heads {
            pair = kept_keys::<E>(pair, biased::<E, D>(a, row, head + a.kv_heads, dim));
        } else {
            pair = pair.map(kept_value::<E>);
        }
        let half = kv / a.kv_heads * half_page_elements(D);
        let to = page_offset(D, a.kv_heads, page, kv % a.kv_heads) + u64::from(half);
        store_pair::<D>(a.pool.wrapping_add(to as usize), token, dim, pair);
    }
}

/// The pair at `dim` of a row's head, with its bias.
///
/// # Safety
/// As [`rotate_append`]; the row and its head exist.
#[inline(always)]
unsafe fn biased<E: Element, const D: u32>(a: Qkv, row: u32, head: u32, dim: u32) -> [Chunk; 2] {
    let heads = (a.q_heads + 2 * a.kv_heads) as usize;
    let from = (row as usize * heads + head as usize) * D as usize;
    // SAFETY: the caller's.
    unsafe {
        let [low, high] = load_pair::<D>(a.qkv.add(from), dim);
        if a.bias.is_null() {
            return [low, high];
        }
        let bias = load_pair_f32::<D>(a.bias.add((head * D) as usize), dim);
        [added::<E>(low, bias[0]), added::<E>(high, bias[1])]
    }
}

#[inline(always)]
fn added<E: Element>(chunk: Chunk, bias: Values) -> Chunk {
    let x = unpack_chunk::<E>(chunk);
    pack_chunk::<E>(core::array::from_fn(|i| x[i] + bias[i]))
}

/// Divides a head by the root of its mean square, and multiplies it with `gain`; each lane has the pair at its `dim`.
///
/// # Safety
/// The lanes of a head call it together; `gain` is valid for `D` reads and 16-byte aligned.
#[inline(always)]
unsafe fn norm_head<E: Element, const D: u32>(
    [low, high]: [Chunk; 2],
    gain: *const f32,
    dim: u32,
    eps: f32,
) -> [Chunk; 2] {
    let [low, high] = [unpack_chunk::<E>(low), unpack_chunk::<E>(high)];
    let mut squares = 0.0;
    for i in 0..CORE as usize {
        squares = math::fma(low[i], low[i], squares);
        squares = math::fma(high[i], high[i], squares);
    }
    let lanes = D / 2 / CORE;
    let mask = ((1 << lanes) - 1) << (warp::lane_id() / lanes * lanes);
    let mut step = lanes / 2;
    while step > 0 {
        // SAFETY: the caller's.
        squares += unsafe { warp::warp_shuffle_xor(mask, squares, step) };
        step /= 2;
    }
    let scale = math::reciprocal_sqrt(squares / D as f32 + eps);
    // SAFETY: the caller's.
    let gain = unsafe { load_pair_f32::<D>(gain, dim) };
    let scaled =
        |x: Values, gain: Values| pack_chunk::<E>(core::array::from_fn(|i| x[i] * scale * gain[i]));
    [scaled(low, gain[0]), scaled(high, gain[1])]
}

/// As [`load_pair`], of f32.
///
/// # Safety
/// As [`load_pair`].
#[inline(always)]
unsafe fn load_pair_f32<const D: u32>(head: *const f32, dim: u32) -> [Values; 2] {
    // SAFETY: the caller's.
    [dim, dim + D / 2].map(|dim| unsafe { load_chunk_f32(head.add(dim as usize)) })
}
