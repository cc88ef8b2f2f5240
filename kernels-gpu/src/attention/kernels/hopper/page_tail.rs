//! The end of a partly filled page.
//!
//! Tokens past the end get probability 0, but what lies in their place is arbitrary, and 0 x NaN is NaN: so
//! V's rows there are cleared in shared memory before the product.

use core::ops::Range;

use device::matrix::Row;
use device::shared::Shared;

/// Clears V's rows of those of `range` that are not below `tokens`, a multiple of 8 at both ends. Taken part in
/// by `threads` threads, this one being `thread`.
#[inline(always)]
pub(super) unsafe fn clear<const D: usize>(
    v: Shared<Row>,
    tokens: u32,
    range: Range<u32>,
    thread: u32,
    threads: u32,
) {
    let chunks = D as u32 / 8;
    // A piece is one token's 8 dims; 8 tokens' pieces of all chunks make a row group.
    let first = if tokens / 8 * 8 > range.start { tokens / 8 * 8 } else { range.start };
    let mut piece = first * chunks + thread;
    while piece < range.end * chunks {
        if piece / (8 * chunks) * 8 + piece % 8 >= tokens {
            // SAFETY: the piece lies within the stage.
            unsafe { v.at(piece).cast().store([0u32; 4]) };
        }
        piece += threads;
    }
}
