//! Shared memory of one `attend` block on Ampere and Ada, by head dimension: 99 KiB are the most that all of them
//! give a block (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").

use super::{CONSUMERS, COUNTED_SEGMENTS, PROGRAM_BYTES, STATISTICS_BYTES};
use crate::abi::PAGE_TOKENS;

/// Threads of a block: all of them load and compute.
pub const THREADS: u32 = CONSUMERS;

/// Sizes and offsets, in bytes.
///
/// ```text
/// STAGES pages | query tile, reused by the epilogue | program | token counts | row statistics | page records
/// ```
pub struct Tile<const D: usize>;

impl<const D: usize> Tile<D> {
    /// Most rows of a work item.
    pub const MAX_ROWS: u32 = super::max_rows(D as u32);
    /// K (or V) of one page.
    pub const HALF_BYTES: u32 = PAGE_TOKENS * D as u32 * 2;
    /// A page: K, then V.
    pub const PAGE_BYTES: u32 = 2 * Self::HALF_BYTES;
    /// The query tile, at least what the epilogue exchanges.
    pub const QUERY_BYTES: u32 = 32 * 1024;
    /// Pages that there is room for.
    pub const STAGES: u32 = 64 * 1024 / Self::PAGE_BYTES;
    /// Offset of the query tile.
    pub const QUERY: u32 = Self::STAGES * Self::PAGE_BYTES;
    /// Offset of the program.
    pub const PROGRAM: u32 = Self::QUERY + Self::QUERY_BYTES;
    /// Offset of the token counts.
    pub const COUNTS: u32 = Self::PROGRAM + PROGRAM_BYTES;
    /// Offset of the row statistics.
    pub const STATISTICS: u32 = Self::COUNTS + COUNTED_SEGMENTS * 4;
    /// Offset of the page records, one a stage.
    pub const RECORDS: u32 = Self::STATISTICS + STATISTICS_BYTES;
    /// Two words.
    pub const RECORD_BYTES: u32 = 8;
    /// Dynamic shared memory of a block.
    pub const SHARED_BYTES: u32 = Self::RECORDS + Self::STAGES * Self::RECORD_BYTES;
    /// Of compacted nodes, offset of the stages' cells.
    pub const CELLS: u32 = Self::SHARED_BYTES;
    /// The same for a block that reads compacted nodes.
    pub const COMPACTED_SHARED_BYTES: u32 = Self::CELLS + Self::STAGES * 4;
}

const _: () = assert!(Tile::<64>::COMPACTED_SHARED_BYTES <= 99 * 1024);
const _: () = assert!(Tile::<128>::COMPACTED_SHARED_BYTES <= 99 * 1024);
const _: () = assert!(Tile::<256>::COMPACTED_SHARED_BYTES <= 99 * 1024);
