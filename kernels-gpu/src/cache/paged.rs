//! Tokens between our pages and the paged layouts that other engines keep.

use super::{Chunk, THREADS, kept_key, kept_value};
use crate::abi::PAGE_TOKENS;
use crate::layout::{CORE, element_offset, half_page_elements, page_offset};
use device::{Bf16, Element, F16, global, thread};
use kernel_macros::kernel;

/// Chunks of a token that neighbouring threads move: with eight tokens a warp touches whole 32-byte sectors
/// on either side.
const CHUNKS: u32 = 4;

/// How a foreign cache is paged. Strides count rows of one head's K (or V).
#[derive(Clone, Copy)]
struct Foreign {
    page_size: u32,
    page_stride: u32,
    token_stride: u32,
    head_stride: u32,
}

/// What one thread moves: eight dims of K or V of one token and KV head.
struct Piece {
    is_value: bool,
    /// Element offset within our layer's plane.
    ours: u64,
    /// Element offset within the foreign pool.
    theirs: u64,
}

/// Copies tokens of a foreign sequence into the layer's plane `pool`: token `i` to `places[i]`
/// (`page * 64 + token`). The token is token `i % page_size` of foreign page `table[i / page_size]`; its row of
/// KV head `h` is row `page * page_stride + token * token_stride + h * head_stride` of `k` and `v`, of `D`
/// elements. So strides say NHD (`kv_heads`, 1), HND (1, `page_size`), and whether K and V share a pool. V that is not
/// finite is kept as in [`append`](super::append()).
///
/// Grid: x `ceil(count / 8) * D / 2` threads (K and V, eight tokens, `D / 8` chunks), y `kv_heads`.
///
/// # Safety
/// `k`, `v` and `pool` are 16-byte aligned, `places` and `table` valid for the tokens, what they name within
/// the pools; places are distinct.
#[expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(
        import_pages_bf16_d64: <Bf16, 64>,
        import_pages_bf16_d128: <Bf16, 128>,
        import_pages_bf16_d256: <Bf16, 256>,
        import_pages_f16_d64: <F16, 64>,
        import_pages_f16_d128: <F16, 128>,
        import_pages_f16_d256: <F16, 256>
    )
)]
#[inline(always)]
pub unsafe fn import_pages<E: Element, const D: u32>(
    pool: *mut u16,
    k: *const u16,
    v: *const u16,
    places: *const u32,
    table: *const u32,
    count: u32,
    kv_heads: u32,
    page_size: u32,
    page_stride: u32,
    token_stride: u32,
    head_stride: u32,
) {
    let foreign = Foreign { page_size, page_stride, token_stride, head_stride };
    // SAFETY: the caller's.
    let Some(piece) = (unsafe { piece::<D>(places, table, count, kv_heads, foreign) }) else {
        return;
    };
    // SAFETY: chunks within the pools.
    unsafe {
        let value: Chunk = global::load_v4_u32(v.add(piece.theirs as usize).cast());
        let data = if piece.is_value {
            kept_value::<E>(value)
        } else {
            kept_key::<E>(global::load_v4_u32(k.add(piece.theirs as usize).cast()), value)
        };
        global::store_v4_u32(pool.add(piece.ours as usize).cast(), data);
    }
}

/// The way back of [`import_pages`]: copies `places[i]` to the foreign sequence's token `i`.
///
/// # Safety
/// As [`import_pages`]; `k` and `v` are written, and the table names no page twice.
#[expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "cache",
    instances(
        export_pages_d64: <64>,
        export_pages_d128: <128>,
        export_pages_d256: <256>
    )
)]
#[inline(always)]
pub unsafe fn export_pages<const D: u32>(
    pool: *const u16,
    k: *mut u16,
    v: *mut u16,
    places: *const u32,
    table: *const u32,
    count: u32,
    kv_heads: u32,
    page_size: u32,
    page_stride: u32,
    token_stride: u32,
    head_stride: u32,
) {
    let foreign = Foreign { page_size, page_stride, token_stride, head_stride };
    // SAFETY: the caller's.
    let Some(piece) = (unsafe { piece::<D>(places, table, count, kv_heads, foreign) }) else {
        return;
    };
    let theirs = if piece.is_value { v } else { k };
    // SAFETY: chunks within the pools.
    unsafe {
        let data: Chunk = global::load_v4_u32(pool.add(piece.ours as usize).cast());
        global::store_v4_u32(theirs.add(piece.theirs as usize).cast(), data);
    }
}

/// This thread's part, if it has one.
///
/// # Safety
/// `places` and `table` are valid for `count` tokens.
#[inline(always)]
unsafe fn piece<const D: u32>(
    places: *const u32,
    table: *const u32,
    count: u32,
    kv_heads: u32,
    foreign: Foreign,
) -> Option<Piece> {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let kv_head = thread::block_idx_y();
    let lane_chunk = index % CHUNKS;
    let lane_token = index / CHUNKS % CORE;
    let rest = index / (CHUNKS * CORE);
    let dim = (rest % (D / CORE / CHUNKS) * CHUNKS + lane_chunk) * CORE;
    let rest = rest / (D / CORE / CHUNKS);
    let is_value = rest % 2;
    let token = rest / 2 * CORE + lane_token;
    if token >= count {
        return None;
    }
    let (block, slot) = (token / foreign.page_size, token % foreign.page_size);
    // SAFETY: the token has a place, and its page an entry.
    let (place, page) = unsafe {
        (global::load_u32(places.add(token as usize)), global::load_u32(table.add(block as usize)))
    };
    let row = u64::from(page) * u64::from(foreign.page_stride)
        + u64::from(slot) * u64::from(foreign.token_stride)
        + u64::from(kv_head) * u64::from(foreign.head_stride);
    let half = is_value * half_page_elements(D);
    let within = half + element_offset(D, place % PAGE_TOKENS, dim);
    Some(Piece {
        is_value: is_value == 1,
        ours: page_offset(D, kv_heads, place / PAGE_TOKENS, kv_head) + u64::from(within),
        theirs: row * u64::from(D) + u64::from(dim),
    })
}
