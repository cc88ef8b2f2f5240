//! The fused projection's output to where attention reads it: queries to an array, K and V into pages.

use crate::abi::AppendTarget;
use crate::cache::{kept_keys, kept_value, load_pair, place, store_pair, turn_pair};
use crate::layout::{CORE, half_page_elements, page_offset};
use crate::model::limits::THREADS;
use device::{Element, global, thread};

/// What a `rotate_append` launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Qkv {
    /// `[count, q_heads + 2 * kv_heads, head_dim]`: queries, then keys, then values.
    pub qkv: *const u16,
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
    /// `[positions, head_dim / 2]`.
    pub cos: *const f32,
    /// As `cos`.
    pub sin: *const f32,
    /// Rows.
    pub count: u32,
    /// Query heads.
    pub q_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
}

/// Rotates queries and keys of each row by its position, as [`append_rope`](crate::cache::append_rope()) does, and
/// writes queries to `q`, keys and values to where the row's target says. A row whose target is passed over there is
/// passed over here, queries included. A thread has both chunks of eight pairs of a head.
///
/// # Safety
/// As [`append_rope`](crate::cache::append_rope()); `q` is valid for its shape and 16-byte aligned.
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
    // SAFETY: the row and its head exist; where its target is, so are its position and page.
    unsafe {
        let from = (row as usize * heads as usize + head as usize) * D as usize;
        let mut pair = load_pair::<D>(a.qkv.add(from), dim);
        // Asked for before it is known to be needed: one trip to memory less.
        let position = global::load_u32(a.positions.add(row as usize));
        let target = a.targets.add(row as usize);
        let Some((page, token)) = place(target, a.lengths, a.tail_pages) else {
            return;
        };
        if head < a.q_heads + a.kv_heads {
            turn_pair::<E, D>(&mut pair, position, a.cos, a.sin, dim);
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
            let values = a.qkv.add(from + (a.kv_heads * D) as usize);
            pair = kept_keys::<E>(pair, load_pair::<D>(values, dim));
        } else {
            pair = pair.map(kept_value::<E>);
        }
        let half = kv / a.kv_heads * half_page_elements(D);
        let to = page_offset(D, a.kv_heads, page, kv % a.kv_heads) + u64::from(half);
        store_pair::<D>(a.pool.wrapping_add(to as usize), token, dim, pair);
    }
}
