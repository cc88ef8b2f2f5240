//! How a page lies in memory: the layout tensor cores want, so that a page needs no rearranging.
//!
//! A page holds [`PAGE_TOKENS`] tokens of one KV head and layer: all of K, then all of V, each as
//! `[token group of 8][dim chunk of 8][8 tokens][8 dims]`. With 16-bit elements every 8x8 core matrix
//! is 128 contiguous bytes (PTX ISA, "Matrix and data movement shapes: core matrices", no swizzle), and
//! the first `ceil(n / 8)` groups of a page filled with `n` tokens are one contiguous prefix.

use crate::abi::PAGE_TOKENS;

/// Tokens in a group and dims in a chunk: the side of a core matrix.
pub const CORE: u32 = 8;

/// Native pages whose memory pages of another format share.
pub const SLAB_PAGES: u32 = 16;

/// Elements of K (or of V) in a page.
pub const fn half_page_elements(head_dim: u32) -> u32 {
    PAGE_TOKENS * head_dim
}

/// Elements of a page: K, then V.
pub const fn page_elements(head_dim: u32) -> u32 {
    2 * half_page_elements(head_dim)
}

/// Element offset of `(token, dim)` within the K half (or the V half) of a page.
pub const fn element_offset(head_dim: u32, token: u32, dim: u32) -> u32 {
    let chunks = head_dim / CORE;
    let core = (token / CORE) * chunks + dim / CORE;
    core * CORE * CORE + (token % CORE) * CORE + dim % CORE
}

/// Elements of K (or of V) that hold the first `tokens` tokens: whole groups, contiguous from the start.
pub const fn prefix_elements(head_dim: u32, tokens: u32) -> u32 {
    tokens.div_ceil(CORE) * CORE * head_dim
}

/// Element offset of a page's first element of K within a layer's plane, pages of all heads interleaved.
pub const fn page_offset(head_dim: u32, kv_heads: u32, page: u32, kv_head: u32) -> u64 {
    (page as u64 * kv_heads as u64 + kv_head as u64) * page_elements(head_dim) as u64
}
