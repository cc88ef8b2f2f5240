//! Rows of compacted nodes: gathered from cells, and merged.

use super::{Chunk, THREADS, kept_key, kept_value};
use crate::abi::{PAGE_TOKENS, RowSource, RowTarget};
use crate::layout::{CORE, element_offset, half_page_elements, page_offset};
use device::{Bf16, Element, F16, global, math, thread};
use kernel_macros::kernel;

/// Writes the rows `targets`, of one layer, of what `sources` say ([`RowTarget`]); a thread a chunk of eight dims of a row's
/// K and V. Sums are made in f32 in the order of the sources, without fused operations. Where eight dims of a V are not finite
/// then, they are kept as zeros, and those of K as NaN. `biases: [cell][64]` get those of all targets, unless it is null.
///
/// # Safety
/// `pool` is the layer's plane, 16-byte aligned, and has all cells; `targets` has `count` of them, with ends that ascend
/// within `sources`; no row is named twice, nor is one also a source.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "compact",
    instances(
        compact_bf16_d64: <Bf16, 64>,
        compact_bf16_d128: <Bf16, 128>,
        compact_bf16_d256: <Bf16, 256>,
        compact_f16_d64: <F16, 64>,
        compact_f16_d128: <F16, 128>,
        compact_f16_d256: <F16, 256>
    )
)]
#[inline(always)]
pub unsafe fn compact<E: Element, const D: u32>(
    pool: *mut u16,
    biases: *mut f32,
    targets: *const RowTarget,
    sources: *const RowSource,
    count: u32,
) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let chunks = D / CORE;
    let (row, chunk) = (index / chunks, index % chunks);
    if row >= count {
        return;
    }
    let place = |cell: u32, token: u32| {
        let within = element_offset(D, token, chunk * CORE);
        (page_offset(D, 1, cell, 0) + u64::from(within)) as usize
    };
    let half = half_page_elements(D) as usize;
    // SAFETY: the target and its sources are there, their rows lie within the pool, chunks on multiples of 16 bytes.
    unsafe {
        let target = targets.add(row as usize).cast::<u32>();
        let [cell, token, end, bias] = global::load_v4_u32(target);
        let begin = if row == 0 { 0 } else { global::load_u32(target.sub(2)) };
        let source = |index: u32| {
            let [cell, token, k, v] = global::load_v4_u32(sources.add(index as usize).cast());
            let from = pool.add(place(cell, token));
            let rows: [Chunk; 2] =
                [global::load_v4_u32(from.cast()), global::load_v4_u32(from.add(half).cast())];
            (rows, [k, v].map(f32::from_bits))
        };
        let (mut rows, weights) = source(begin);
        if end - begin > 1 || weights[0] != 1.0 || weights[1] != 1.0 {
            let mut sums = [[[0.0f32; 2]; 4]; 2];
            let mut index = begin;
            while index < end {
                let (rows, weights) = source(index);
                for half in 0..2 {
                    for word in 0..4 {
                        let [low, high] = math::unpack::<E>(rows[half][word]);
                        sums[half][word][0] += weights[half] * low;
                        sums[half][word][1] += weights[half] * high;
                    }
                }
                index += 1;
            }
            let [k, v] = sums.map(|sums| sums.map(|[low, high]| math::pack::<E>(low, high)));
            rows = [kept_key::<E>(k, v), kept_value::<E>(v)];
        }
        let to = pool.add(place(cell, token));
        global::store_v4_u32(to.cast(), rows[0]);
        global::store_v4_u32(to.add(half).cast(), rows[1]);
        if chunk == 0 && !biases.is_null() {
            let to = biases.add(cell as usize * PAGE_TOKENS as usize + token as usize);
            global::store_f32(to, f32::from_bits(bias));
        }
    }
}

/// Moves words of a layer's plane `[cell][64]`, biases or scores, as [`copy`](super::copy) moves tokens; a thread a KV head.
///
/// # Safety
/// `moves` is valid for `2 * count` words, and every place lies within the plane.
#[kernel(threads = 32, group = "compact", instances(move_words))]
#[inline(always)]
pub unsafe fn move_words(plane: *mut u32, moves: *const u32, count: u32, kv_heads: u32) {
    let kv_head = thread::block_idx_x() * 32 + thread::thread_idx_x();
    if kv_head >= kv_heads {
        return;
    }
    let at = |place: u32| {
        let cell = (place / PAGE_TOKENS) as usize * kv_heads as usize + kv_head as usize;
        cell * PAGE_TOKENS as usize + (place % PAGE_TOKENS) as usize
    };
    let mut step = 0;
    while step < count {
        // SAFETY: `step` is below `count`; places lie within the plane.
        unsafe {
            let [from, to] = global::load_v2_u32(moves.add(2 * step as usize));
            let word = global::load_u32(plane.add(at(from)));
            global::store_u32(plane.add(at(to)), word);
        }
        step += 1;
    }
}
