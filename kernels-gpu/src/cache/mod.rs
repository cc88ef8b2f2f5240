//! Writing the KV cache: new tokens, moved tokens, and the counters of growing nodes.
//!
//! Elements are 16-bit patterns here, so bf16 and f16 share these kernels. A thread moves 16 bytes: one
//! token's eight dims, a row of a core matrix (see [`crate::layout`]).

mod advance;
mod append;
mod copy;

pub use advance::advance;
pub use append::append;
pub use copy::copy;

use crate::kernel;

/// Threads of a block of any of these kernels.
pub const THREADS: u32 = 256;

/// 16 bytes: eight elements.
type Chunk = [u32; 4];

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

    unsafe fn copy_d64(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<64>;
    unsafe fn copy_d128(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<128>;
    unsafe fn copy_d256(
        pool: *mut u16, moves: *const u32, count: u32, layers: u32, pages: u32, kv_heads: u32,
    ) = copy::<256>;
}
