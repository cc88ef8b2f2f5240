//! K and V of new tokens into their pages, K with its position's rotation.

use super::append::place;
use super::{Chunk, THREADS, kept_key, kept_value};
use crate::abi::AppendTarget;
use crate::layout::{CORE, element_offset, half_page_elements, page_offset};
use crate::rotary::rotate;
use device::{Bf16, Element, F16, global, math, thread};
use kernel_macros::kernel;

/// As [`append`](super::append()), and rotates row `i` of `k` by `positions[i]` on its way: dim `d` pairs
/// with dim `d + D / 2` (see [`crate::rotary`]). `cos` and `sin` are `[positions, D / 2]`. Arithmetic is
/// f32, rounded once to `E`. A thread has both chunks of eight pairs of K, or the same two chunks of V.
///
/// # Safety
/// As [`append`](super::append()). `positions` is valid for `count` reads, and each that a row written
/// has lies within `cos` and `sin`, which are 16-byte aligned.
#[expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(
        append_rope_bf16_d64: <Bf16, 64>,
        append_rope_bf16_d128: <Bf16, 128>,
        append_rope_bf16_d256: <Bf16, 256>,
        append_rope_f16_d64: <F16, 64>,
        append_rope_f16_d128: <F16, 128>,
        append_rope_f16_d256: <F16, 256>
    )
)]
#[inline(always)]
pub unsafe fn append_rope<E: Element, const D: u32>(
    pool: *mut u16,
    k: *const u16,
    v: *const u16,
    targets: *const AppendTarget,
    lengths: *const u32,
    tail_pages: *const u32,
    positions: *const u32,
    cos: *const f32,
    sin: *const f32,
    count: u32,
    kv_heads: u32,
) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    // As in `append`: pair of chunks fastest, then head, then K or V, then row.
    let pairs = D / 2 / CORE;
    let row_pairs = kv_heads * pairs;
    let row = index / (2 * row_pairs);
    if row >= count {
        return;
    }
    let is_value = index / row_pairs % 2;
    let kv_head = index % row_pairs / pairs;
    let dim = index % pairs * CORE;
    // SAFETY: `row` is below `count`; the counters exist.
    let Some((page, token)) = (unsafe { place(targets.add(row as usize), lengths, tail_pages) })
    else {
        return;
    };
    let from = (row as usize * kv_heads as usize + kv_head as usize) * D as usize;
    // SAFETY: a head of `k` or `v`, its position, and the target's page.
    unsafe {
        let values = load_pair::<D>(v.wrapping_add(from), dim);
        let pair = if is_value == 0 {
            let mut keys = load_pair::<D>(k.wrapping_add(from), dim);
            let position = global::load_u32(positions.add(row as usize));
            turn_pair::<E, D>(&mut keys, position, cos, sin, dim);
            kept_keys::<E>(keys, values)
        } else {
            values.map(kept_value::<E>)
        };
        let head = page_offset(D, kv_heads, page, kv_head);
        let half = u64::from(is_value * half_page_elements(D));
        store_pair::<D>(pool.wrapping_add((head + half) as usize), token, dim, pair);
    }
}

/// The chunks at `dim` and `dim + D / 2` of a head whose elements are contiguous.
///
/// # Safety
/// `head` is valid for `D` reads and 16-byte aligned, `dim` a multiple of 8 below `D / 2`.
#[inline(always)]
pub(crate) unsafe fn load_pair<const D: u32>(head: *const u16, dim: u32) -> [Chunk; 2] {
    // SAFETY: the caller's.
    [dim, dim + D / 2].map(|dim| unsafe { global::load_v4_u32(head.add(dim as usize).cast()) })
}

/// Turns the pair at `dim` by `position`.
///
/// # Safety
/// `cos` and `sin`, `[positions, D / 2]`, are 16-byte aligned and have that position; `dim` as in [`load_pair`].
#[inline(always)]
pub(crate) unsafe fn turn_pair<E: Element, const D: u32>(
    [low, high]: &mut [Chunk; 2],
    position: u32,
    cos: *const f32,
    sin: *const f32,
    dim: u32,
) {
    let at = position as usize * (D as usize / 2) + dim as usize;
    // SAFETY: eight entries of that position's row.
    unsafe { rotate_chunks::<E>(low, high, cos.add(at), sin.add(at)) };
}

/// What is kept of a pair of K where V is `values`.
#[inline(always)]
pub(crate) fn kept_keys<E: Element>([low, high]: [Chunk; 2], values: [Chunk; 2]) -> [Chunk; 2] {
    [kept_key::<E>(low, values[0]), kept_key::<E>(high, values[1])]
}

/// Stores the pair at `dim` of token `token`, where K or V of a page and KV head are `half`.
///
/// # Safety
/// `half` is that of a page of the pool, `token` below 64, `dim` as in [`load_pair`].
#[inline(always)]
pub(crate) unsafe fn store_pair<const D: u32>(
    half: *mut u16,
    token: u32,
    dim: u32,
    [low, high]: [Chunk; 2],
) {
    let chunk_at = |dim| half.wrapping_add(element_offset(D, token, dim) as usize);
    // SAFETY: chunks of the page.
    unsafe {
        global::store_v4_u32(chunk_at(dim).cast(), low);
        global::store_v4_u32(chunk_at(dim + D / 2).cast(), high);
    }
}

/// Rotates eight pairs, element `i` of `low` with element `i` of `high`.
///
/// # Safety
/// `cos` and `sin` are 16-byte aligned and valid for eight reads.
#[inline(always)]
unsafe fn rotate_chunks<E: Element>(
    low: &mut Chunk,
    high: &mut Chunk,
    cos: *const f32,
    sin: *const f32,
) {
    for half in 0..2 {
        // SAFETY: four of the eight entries.
        let (cos, sin) = unsafe {
            (global::load_v4_f32(cos.add(4 * half)), global::load_v4_f32(sin.add(4 * half)))
        };
        for pair in 0..2 {
            let word = 2 * half + pair;
            let (x, y) = (math::unpack::<E>(low[word]), math::unpack::<E>(high[word]));
            let first = rotate([x[0], y[0]], cos[2 * pair], sin[2 * pair]);
            let second = rotate([x[1], y[1]], cos[2 * pair + 1], sin[2 * pair + 1]);
            low[word] = math::pack::<E>(first[0], second[0]);
            high[word] = math::pack::<E>(first[1], second[1]);
        }
    }
}
