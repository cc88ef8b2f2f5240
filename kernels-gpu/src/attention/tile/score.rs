//! Shared memory of one `score` block, by head dimension. Pages are K alone.

use super::{CONSUMERS, COUNTED_SEGMENTS, PROGRAM_BYTES};
use crate::Arch;
use crate::abi::PAGE_TOKENS;

/// Threads of a block: all compute, and on Hopper a warp more loads, with three idle companions, since registers are dealt
/// out by warpgroup.
pub const fn threads(arch: Arch) -> u32 {
    match arch {
        Arch::Sm80 => CONSUMERS,
        Arch::Sm90a => CONSUMERS + 128,
    }
}

/// Dynamic shared memory of a block, in bytes.
pub const fn shared_bytes<const D: usize>(arch: Arch) -> u32 {
    match arch {
        Arch::Sm80 => Ampere::<D>::SHARED_BYTES,
        Arch::Sm90a => Hopper::<D>::SHARED_BYTES,
    }
}

/// On Ampere and what follows it.
pub type Ampere<const D: usize> = Tile<D, 64>;
/// On Hopper.
pub type Hopper<const D: usize> = Tile<D, 192>;

/// Sizes and offsets, in bytes, with `KIB` KiB of pages.
///
/// ```text
/// STAGES halves of pages | query tile | program | token counts | two words a row | stages' records
/// ```
pub struct Tile<const D: usize, const KIB: u32>;

impl<const D: usize, const KIB: u32> Tile<D, KIB> {
    /// Most rows of a work item.
    pub const MAX_ROWS: u32 = super::max_rows(D as u32);
    /// K of one page.
    pub const HALF_BYTES: u32 = PAGE_TOKENS * D as u32 * 2;
    /// Bytes of 8 tokens of K, or of 8 rows.
    pub const GROUP_BYTES: u32 = super::group_bytes(D);
    /// Pages that there is room for.
    pub const STAGES: u32 = KIB * 1024 / Self::HALF_BYTES;
    /// Most rows of an item that a warp takes alone.
    pub const NARROW_ROWS: u32 = 16;
    /// Warps that take such items: so many have a place in the query tile.
    pub const NARROW_WARPS: u32 = Self::MAX_ROWS / Self::NARROW_ROWS;
    /// Offset of the query tile.
    pub const QUERY: u32 = KIB * 1024;
    /// Offset of the program.
    pub const PROGRAM: u32 = Self::QUERY + Self::MAX_ROWS * D as u32 * 2;
    /// Offset of the token counts.
    pub const COUNTS: u32 = Self::PROGRAM + PROGRAM_BYTES;
    /// Offset of what is kept of the item's rows.
    pub const ROWS: u32 = Self::COUNTS + COUNTED_SEGMENTS * 4;
    /// Offset of the stages' records.
    pub const RECORDS: u32 = Self::ROWS + Self::MAX_ROWS * 8;
    /// Two barriers, which only Hopper has, and three words.
    pub const RECORD_BYTES: u32 = 32;
    /// Dynamic shared memory of a block.
    pub const SHARED_BYTES: u32 = Self::RECORDS + Self::STAGES * Self::RECORD_BYTES;
}

const _: () = assert!(Ampere::<64>::SHARED_BYTES <= 99 * 1024);
const _: () = assert!(Ampere::<128>::SHARED_BYTES <= 99 * 1024);
const _: () = assert!(Ampere::<256>::SHARED_BYTES <= 99 * 1024);
const _: () = assert!(Hopper::<64>::SHARED_BYTES <= 227 * 1024);
const _: () = assert!(Hopper::<128>::SHARED_BYTES <= 227 * 1024);
const _: () = assert!(Hopper::<256>::SHARED_BYTES <= 227 * 1024);
