//! Writing the KV cache: new tokens, moved tokens, tokens of other caches, and the counters of growing
//! nodes.
//!
//! Where elements are only moved they are 16-bit patterns, so bf16 and f16 share a kernel. What a thread
//! moves is 16 bytes at a time: one token's eight dims, a row of a core matrix (see [`crate::layout`]).

mod advance;
mod append;
mod append_rope;
mod copy;
mod paged;

pub use advance::advance;
pub use append::append;
pub(crate) use append::place;
pub use append_rope::append_rope;
pub(crate) use append_rope::{load_pair, store_pair, turn_pair};
pub use copy::copy;
pub use paged::{export_pages, import_pages};

use device::kernel;
use device::{Bf16, F16};

/// Threads of a block of any of these kernels.
pub const THREADS: u32 = 256;

/// 16 bytes: eight elements.
pub(crate) type Chunk = [u32; 4];

kernel! {
    unsafe fn advance_counters(targets: *const u32, count: u32, lengths: *mut u32) = advance;

    unsafe fn append_d64(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, count: u32, kv_heads: u32,
    ) = append::<64>;
    unsafe fn append_d128(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, count: u32, kv_heads: u32,
    ) = append::<128>;
    unsafe fn append_d256(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, count: u32, kv_heads: u32,
    ) = append::<256>;

    unsafe fn append_rope_bf16_d64(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<Bf16, 64>;
    unsafe fn append_rope_bf16_d128(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<Bf16, 128>;
    unsafe fn append_rope_bf16_d256(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<Bf16, 256>;
    unsafe fn append_rope_f16_d64(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<F16, 64>;
    unsafe fn append_rope_f16_d128(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<F16, 128>;
    unsafe fn append_rope_f16_d256(
        pool: *mut u16, k: *const u16, v: *const u16, targets: *const u32, lengths: *const u32,
        tail_pages: *const u32, positions: *const u32, cos: *const f32, sin: *const f32, count: u32,
        kv_heads: u32,
    ) = append_rope::<F16, 256>;

    unsafe fn copy_d64(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<64>;
    unsafe fn copy_d128(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<128>;
    unsafe fn copy_d256(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<256>;

    unsafe fn import_pages_d64(
        pool: *mut u16, k: *const u16, v: *const u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = import_pages::<64>;
    unsafe fn import_pages_d128(
        pool: *mut u16, k: *const u16, v: *const u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = import_pages::<128>;
    unsafe fn import_pages_d256(
        pool: *mut u16, k: *const u16, v: *const u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = import_pages::<256>;

    unsafe fn export_pages_d64(
        pool: *const u16, k: *mut u16, v: *mut u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = export_pages::<64>;
    unsafe fn export_pages_d128(
        pool: *const u16, k: *mut u16, v: *mut u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = export_pages::<128>;
    unsafe fn export_pages_d256(
        pool: *const u16, k: *mut u16, v: *mut u16, places: *const u32, table: *const u32, count: u32,
        kv_heads: u32, page_size: u32, page_stride: u32, token_stride: u32, head_stride: u32,
    ) = export_pages::<256>;
}
