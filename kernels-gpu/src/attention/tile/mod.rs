//! Sizes of a block: what all architectures have in common, and each one's shared memory.

pub mod ampere;
pub mod hopper;
pub mod score;

/// Warps of an `attend` block that compute; on Hopper two warpgroups.
pub const CONSUMER_WARPS: u32 = 8;
/// Their threads.
pub const CONSUMERS: u32 = CONSUMER_WARPS * 32;
/// Warps of a `merge` block, one a query and head.
pub const MERGE_WARPS: u32 = 4;
/// Threads of a `merge` block.
pub const MERGE_THREADS: u32 = MERGE_WARPS * 32;
/// Bytes of a program kept in shared memory; longer programs are read from global memory.
pub const PROGRAM_BYTES: u32 = 1280;
/// Segments whose present token counts are kept in shared memory; those of later ones are computed anew.
pub const COUNTED_SEGMENTS: u32 = 64;

/// Statistics of 16 rows a warp.
const STATISTICS_BYTES: u32 = CONSUMER_WARPS * 16 * 8;

/// Most rows of a work item, on every architecture: one plan serves all.
pub const fn max_rows(head_dim: u32) -> u32 {
    if head_dim <= 128 { 128 } else { 64 }
}

/// Bytes of 8 tokens' (or 8 rows') 16-bit vectors: a row of core matrices.
pub const fn group_bytes(head_dim: usize) -> u32 {
    8 * head_dim as u32 * 2
}
