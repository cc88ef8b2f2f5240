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

/// Entries of a row of which the best is found first where the best of many rows are.
pub const BEST_SEGMENT: u32 = 512;

/// Most segments of a row.
pub const BEST_MAX_SEGMENTS: u32 = 1024;

/// Threads of the blocks that choose among keys.
pub const BEST_THREADS: u32 = 256;

/// Bits of a digit of a key.
pub const BEST_DIGIT: u32 = 11;

/// Values that a digit may have.
pub const BEST_BINS: u32 = 1 << BEST_DIGIT;

/// Words of the state of a choice: 96, and the bins of twelve digits, of two searches together.
pub const BEST_STATE_WORDS: u32 = 96 + 12 * BEST_BINS;

/// The word of the state that counts what was chosen.
pub const BEST_RESULTS: u32 = 65;

/// Shared memory of the block that goes over a row, in bytes: a partial sum a warp, and each segment's best.
pub const BEST_ROWS_SHARED_BYTES: u32 = TOP_K_THREADS / 32 * 8 + 4 * BEST_MAX_SEGMENTS;

/// Shared memory of the blocks that choose, in bytes: a sum a warp, and two words of what was found.
pub const BEST_SHARED_BYTES: u32 = 4 * (BEST_THREADS / 32 + 2);

/// Blocks of the kernels that walk over keys, at most.
pub const BEST_BLOCKS: u32 = 528;

/// How a search for a key goes: keys of 32 bits for a value and `bits` for a number, digit by digit from the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestDigits {
    /// Bits of the number.
    pub bits: u32,
}

impl BestDigits {
    /// Of keys whose numbers are below `count`, at least 1.
    pub const fn of(count: u32) -> Self {
        Self { bits: if count <= 1 { 1 } else { 32 - (count - 1).leading_zeros() } }
    }

    /// Digits that keys have.
    pub const fn count(self) -> u32 {
        (32 + self.bits).div_ceil(BEST_DIGIT)
    }

    /// Bits of a digit; 0 of those that there are not.
    pub const fn width(self, digit: u32) -> u32 {
        let left = (32 + self.bits).saturating_sub(digit * BEST_DIGIT);
        if left < BEST_DIGIT { left } else { BEST_DIGIT }
    }

    /// Bits below a digit.
    pub const fn shift(self, digit: u32) -> u32 {
        (32 + self.bits).saturating_sub((digit + 1) * BEST_DIGIT)
    }
}

/// Blocks of the kernel that fills a buffer, at most; each walks.
pub const FILL_BLOCKS: u32 = 1056;
