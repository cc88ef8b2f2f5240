//! Tokens of a page that get probability 0, though their V need not be finite, and 0 x NaN is NaN.
//!
//! What lies past the end of a partly filled page is arbitrary: V's rows there are cleared in shared memory before the
//! product. In blocks of another engine tokens that some queries do not see may hold anything too.

use core::ops::Range;

use crate::abi::{NONE, Segment};
use crate::attention::kernels::block::Work;
use crate::attention::kernels::group_layout::GroupLayout;
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::hopper::Tile;
use crate::cache::{NAN, is_finite};
use device::Element;
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

/// As [`clear`], of a page whose K is at `key`. If not every query of the item sees its tokens, V that is not finite becomes
/// zeros too, and the same dims of K NaN, as in a cache of ours (`cache::non_finite`); so before K is read.
#[inline(always)]
pub(super) unsafe fn mend<E: Element, L: GroupLayout, const D: usize>(
    key: Shared<Row>,
    work: &Work,
    page: PartialPage,
    range: Range<u32>,
    thread: u32,
    threads: u32,
) {
    // SAFETY: the segment and the item are the program's.
    let looks = unsafe {
        let segment = work.program.segment(work.items, page.place & 0xffff);
        let everybody = Segment::pack_visible(0, work.item().query_count);
        segment.mask != NONE || segment.visible != everybody
    };
    let chunks = D as u32 / 8;
    let first = if looks { range.start } else { range.start.max(page.tokens / 8 * 8) };
    let mut piece = first * chunks + thread;
    while piece < range.end * chunks {
        let key = key.at(piece).cast::<[u32; 4]>();
        let value = key.offset(Tile::<D>::HALF_BYTES);
        let token = piece / (8 * chunks) * 8 + L::token(piece);
        // SAFETY: the pieces lie within the stage, and are this thread's.
        unsafe {
            if token >= page.tokens {
                value.store([0; 4]);
            } else if looks && !is_finite::<E>(value.load()) {
                value.store([0; 4]);
                key.store(NAN);
            }
        }
        piece += threads;
    }
}
