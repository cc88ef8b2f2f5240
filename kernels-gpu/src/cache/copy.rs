//! Tokens moved within the cache, as when a draft is accepted.

use super::{Chunk, THREADS};
use crate::abi::PAGE_TOKENS;
use crate::layout::{CORE, element_offset, half_page_elements, page_offset};
use device::{global, thread};
use kernel_macros::kernel;

/// Moves tokens of all layers and KV heads. `moves: [count]` are pairs `from, to` of `page * 64 + token`.
///
/// A thread owns a chunk of eight dims of K or V, of one layer and KV head, and walks `share` moves of the list, those of
/// its block's `y`. So where one share has them all a move may write where an earlier one has read, without any barrier;
/// with more of them targets are nobody's sources.
///
/// # Safety
/// `pool` is `[layers][pages][kv_heads][page]` and 16-byte aligned, `moves` valid for `2 * count` words,
/// and every place lies within the pool.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(
        copy_d64: <64>,
        copy_d128: <128>,
        copy_d256: <256>
    )
)]
#[inline(always)]
pub unsafe fn copy<const D: u32>(
    pool: *mut u16,
    moves: *const u32,
    count: u32,
    share: u32,
    layers: u32,
    pages: u32,
    kv_heads: u32,
) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let chunks = D / CORE;
    let dim = index % chunks * CORE;
    let is_value = index / chunks % 2;
    let kv_head = index / (2 * chunks) % kv_heads;
    let layer = index / (2 * chunks) / kv_heads;
    if layer >= layers {
        return;
    }
    let plane = page_offset(D, kv_heads, pages, 0) * u64::from(layer);
    let chunk_at = |place: u32| {
        let page = page_offset(D, kv_heads, place / PAGE_TOKENS, kv_head);
        let token = element_offset(D, place % PAGE_TOKENS, dim);
        plane + page + u64::from(is_value * half_page_elements(D) + token)
    };
    let mut step = thread::block_idx_y() * share;
    let end = if count - step < share { count } else { step + share };
    while step < end {
        // SAFETY: `step` is below `count`; places lie within the pool, chunks on multiples of 16 bytes.
        unsafe {
            let [from, to] = global::load_v2_u32(moves.add(2 * step as usize));
            let data: Chunk = global::load_v4_u32(pool.add(chunk_at(from) as usize).cast());
            global::store_v4_u32(pool.add(chunk_at(to) as usize).cast(), data);
        }
        step += 1;
    }
}
