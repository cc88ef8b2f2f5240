//! Figures of the kernels that the host needs too.

use crate::layout::CORE;

/// Threads of a block of the kernels that have a thread for every eight elements.
pub const THREADS: u32 = 256;

/// Elements that such a thread has: 16 bytes of the 16-bit types.
pub const CHUNK: u32 = CORE;

/// Threads of the block that normalises a row.
pub const NORM_THREADS: u32 = 512;

/// Chunks of a row that one of its threads keeps in registers.
pub const NORM_CHUNKS: u32 = 4;

/// Longest row that is normalised.
pub const MAX_HIDDEN: u32 = NORM_THREADS * NORM_CHUNKS * CHUNK;

/// Shared memory of the block that normalises a row, in bytes: a word a warp.
pub const NORM_SHARED_BYTES: u32 = NORM_THREADS / 32 * 4;

/// Threads of the block that ranks a row of logits.
pub const TOP_K_THREADS: u32 = 1024;

/// Most entries of a row that are asked for.
pub const MAX_K: u32 = 64;

/// Shared memory of the block that ranks a row, in bytes: a partial sum and a key a warp, and the winners' keys.
pub const TOP_K_SHARED_BYTES: u32 = TOP_K_THREADS / 32 * 16 + MAX_K * 8;

/// Threads of the block that merges rankings of a row's parts: a warp.
pub const MERGE_TOP_K_THREADS: u32 = 32;

/// Words of what a part of a row says of its best `k` entries: two of its softmax, three an entry.
pub const fn part_words(k: u32) -> u32 {
    2 + 3 * k
}

/// Shared memory of the block that picks tokens of a row, in bytes: a partial sum and a sum of weights a warp.
pub const PICK_SHARED_BYTES: u32 = TOP_K_THREADS / 32 * 12;

/// Blocks of the kernel that fills a buffer, at most; each walks.
pub const FILL_BLOCKS: u32 = 1056;
