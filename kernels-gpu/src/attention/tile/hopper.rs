//! Shared memory of one `attend` block on Hopper, by head dimension.

use super::{CONSUMERS, COUNTED_SEGMENTS, PROGRAM_BYTES, STATISTICS_BYTES};
use crate::abi::PAGE_TOKENS;

/// Threads of a block: registers are dealt out by warpgroup, so the producer warp has three idle companions.
pub const THREADS: u32 = CONSUMERS + 128;

/// Sizes and offsets, in bytes.
///
/// ```text
/// ring: STAGES pages | query tile, reused by the epilogue | program | token counts | row statistics | stages
/// ```
pub struct Tile<const D: usize>;

impl<const D: usize> Tile<D> {
    /// Most rows of a work item.
    pub const MAX_ROWS: u32 = super::max_rows(D as u32);
    /// K (or V) of one page.
    pub const HALF_BYTES: u32 = PAGE_TOKENS * D as u32 * 2;
    /// A page: K, then V.
    pub const PAGE_BYTES: u32 = 2 * Self::HALF_BYTES;
    /// Bytes of 8 tokens of K (or V).
    pub const GROUP_BYTES: u32 = super::group_bytes(D);
    /// The query tile, at least what the epilogues exchange.
    pub const QUERY_BYTES: u32 = 32 * 1024;
    /// Threads of a block that decodes pages: the producer's companions do, and four warps more where a consumer's accumulators
    /// leave registers for them.
    pub const CODED_THREADS: u32 = if D <= 128 { THREADS + 128 } else { THREADS };
    /// Pages in flight.
    pub const STAGES: u32 = (224 * 1024 - Self::QUERY_BYTES) / Self::PAGE_BYTES;
    /// Offset of the query tile.
    pub const QUERY: u32 = Self::STAGES * Self::PAGE_BYTES;
    /// Offset of the program.
    pub const PROGRAM: u32 = Self::QUERY + Self::QUERY_BYTES;
    /// Offset of the token counts.
    pub const COUNTS: u32 = Self::PROGRAM + PROGRAM_BYTES;
    /// Offset of the row statistics.
    pub const STATISTICS: u32 = Self::COUNTS + COUNTED_SEGMENTS * 4;
    /// A stage's record: its two barriers and what the producer says of its page.
    pub const RECORDS: u32 = Self::STATISTICS + STATISTICS_BYTES;
    /// Two barriers and two words.
    pub const RECORD_BYTES: u32 = 24;
    /// Dynamic shared memory of a block.
    pub const SHARED_BYTES: u32 = Self::RECORDS + Self::STAGES * Self::RECORD_BYTES + 8;
    /// Of compacted nodes, offset of the stages' cells.
    pub const CELLS: u32 = Self::SHARED_BYTES;
    /// The same for a block that reads compacted nodes.
    pub const COMPACTED_SHARED_BYTES: u32 = Self::CELLS + Self::STAGES * 4;
}

const _: () = assert!(Tile::<64>::COMPACTED_SHARED_BYTES <= 227 * 1024);
const _: () = assert!(Tile::<128>::COMPACTED_SHARED_BYTES <= 227 * 1024);
const _: () = assert!(Tile::<256>::COMPACTED_SHARED_BYTES <= 227 * 1024);
