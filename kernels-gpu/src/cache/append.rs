//! K and V of new tokens into their pages.

use super::{Chunk, THREADS, kept_key, kept_value};
use crate::abi::{APPEND_LIVE, AppendTarget, NONE, PAGE_TOKENS};
use crate::layout::{CORE, element_offset, half_page_elements, page_offset};
use device::{Bf16, Element, F16, global, thread};
use kernel_macros::kernel;

/// Writes row `i` of `k` and `v`, both `[count, kv_heads, D]`, to where `targets[i]` says, in the layer's
/// plane `pool`; a thread a chunk of eight dims of K or V. A target [`NONE`], and one whose counter counts
/// no token, is passed over: so a captured launch serves fewer tokens than it was made for. Where eight dims of V are not
/// finite they are kept as zeros, and those of K as NaN.
///
/// # Safety
/// All arrays are valid for their shapes and 16-byte aligned, targets are distinct, and name pages of the
/// pool or counters within `lengths` and `tail_pages`.
#[expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(
        append_bf16_d64: <Bf16, 64>,
        append_bf16_d128: <Bf16, 128>,
        append_bf16_d256: <Bf16, 256>,
        append_f16_d64: <F16, 64>,
        append_f16_d128: <F16, 128>,
        append_f16_d256: <F16, 256>
    )
)]
#[inline(always)]
pub unsafe fn append<E: Element, const D: u32>(
    pool: *mut u16,
    k: *const u16,
    v: *const u16,
    targets: *const AppendTarget,
    lengths: *const u32,
    tail_pages: *const u32,
    count: u32,
    kv_heads: u32,
) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    // Neighbours share a row: chunk fastest, then head, then K or V, then row.
    let chunks = kv_heads * (D / CORE);
    let row = index / (2 * chunks);
    if row >= count {
        return;
    }
    let is_value = index / chunks % 2;
    let chunk = index % chunks;
    // SAFETY: `row` is below `count`; the counters exist.
    let Some((page, token)) = (unsafe { place(targets.add(row as usize), lengths, tail_pages) })
    else {
        return;
    };
    let from = (row * chunks + chunk) as usize * CORE as usize;
    let (kv_head, dim) = (chunk / (D / CORE), chunk % (D / CORE) * CORE);
    let to = page_offset(D, kv_heads, page, kv_head)
        + u64::from(is_value * half_page_elements(D) + element_offset(D, token, dim));
    // SAFETY: within `k` or `v` and the page, both a multiple of eight elements from an aligned start.
    unsafe {
        let value: Chunk = global::load_v4_u32(v.add(from).cast());
        let data = if is_value == 0 {
            kept_key::<E>(global::load_v4_u32(k.add(from).cast()), value)
        } else {
            kept_value::<E>(value)
        };
        global::store_v4_u32(pool.add(to as usize).cast(), data);
    }
}

/// Page and token that a target names.
///
/// # Safety
/// `target` can be read, and a counter that it names exists.
#[inline(always)]
pub(crate) unsafe fn place(
    target: *const AppendTarget,
    lengths: *const u32,
    tail_pages: *const u32,
) -> Option<(u32, u32)> {
    // SAFETY: the caller's.
    let target = unsafe { global::load_u32(target) };
    if target == NONE {
        return None;
    }
    if target & APPEND_LIVE == 0 {
        return Some((target / PAGE_TOKENS, target % PAGE_TOKENS));
    }
    let slot = (target & !APPEND_LIVE) as usize;
    // SAFETY: the counter exists.
    let (length, page) =
        unsafe { (global::load_u32(lengths.add(slot)), global::load_u32(tail_pages.add(slot))) };
    if length == 0 || page == NONE {
        return None;
    }
    Some((page, (length - 1) % PAGE_TOKENS))
}
