//! Tokens of a page that get probability 0, though their V need not be finite, and 0 x NaN is NaN.
//!
//! What lies past the end of a partly filled page is arbitrary: V's rows there are cleared in shared memory before the
//! product. In blocks of another engine tokens that some queries do not see may hold anything too.

use core::marker::PhantomData;
use core::ops::Range;

use crate::abi::{NONE, Segment};
use crate::attention::kernels::block::Work;
use crate::attention::kernels::group_layout::GroupLayout;
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::hopper::Tile;
use crate::cache::{NAN, carries, is_finite};
use device::Element;
use device::matrix::Row;
use device::shared::Shared;

/// Clears V's rows of those of `range` that are not below `tokens`, a multiple of 8 at both ends. Taken part in
/// by `threads` threads, this one being `thread`.
#[inline(always)]
pub(super) unsafe fn clear<L: GroupLayout, const D: usize>(
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
        if token::<L, D>(piece) >= tokens {
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
    let value = key.offset(Tile::<D>::HALF_BYTES);
    let pieces = Pieces::<L, D>::new(page.tokens, &range, thread, threads);
    // SAFETY: the pieces lie within the stage, and are this thread's; the segment and the item are the program's.
    unsafe {
        clear::<L, D>(value, page.tokens, range, thread, threads);
        let segment = work.program.segment(work.items, page.place & 0xffff);
        let everybody = Segment::pack_visible(0, work.item().query_count);
        if segment.mask == NONE && segment.visible == everybody {
            return;
        }
        if pieces.carries::<E>(value) == 0 {
            return;
        }
        let mut piece = pieces.first;
        while piece < pieces.end {
            let at = value.at(piece).cast::<[u32; 4]>();
            if pieces.are_there(piece) && !is_finite::<E>(at.load()) {
                at.store([0; 4]);
                key.at(piece).cast::<[u32; 4]>().store(NAN);
            }
            piece += threads;
        }
    }
}

/// A thread's pieces of a page's tokens.
struct Pieces<L, const D: usize> {
    first: u32,
    /// One past the last.
    end: u32,
    /// From one to the next.
    step: u32,
    tokens: u32,
    layout: PhantomData<L>,
}

impl<L: GroupLayout, const D: usize> Pieces<L, D> {
    #[inline(always)]
    fn new(tokens: u32, range: &Range<u32>, thread: u32, threads: u32) -> Self {
        let chunks = D as u32 / 8;
        let end = range.end.min(tokens.next_multiple_of(8)) * chunks;
        let first = range.start * chunks + thread;
        Self { first, end, step: threads, tokens, layout: PhantomData }
    }

    /// Whether the page has the piece's token.
    #[inline(always)]
    fn are_there(&self, piece: u32) -> bool {
        piece < self.end && token::<L, D>(piece) < self.tokens
    }

    /// Not 0 if something of V in these pieces is not finite.
    #[inline(always)]
    unsafe fn carries<E: Element>(&self, value: Shared<Row>) -> u32 {
        // Pieces whose loads are under way together.
        const BATCH: usize = 4;
        let mut all = 0;
        let mut piece = self.first;
        while piece < self.end {
            let mut loaded = [[0; 4]; BATCH];
            for (i, loaded) in loaded.iter_mut().enumerate() {
                let piece = piece + i as u32 * self.step;
                if self.are_there(piece) {
                    // SAFETY: the caller's.
                    *loaded = unsafe { value.at(piece).cast::<[u32; 4]>().load() };
                }
            }
            for loaded in loaded {
                all |= carries::<E>(loaded);
            }
            piece += BATCH as u32 * self.step;
        }
        all
    }
}

/// Token of the page that piece `piece` of K or V is of.
#[inline(always)]
fn token<L: GroupLayout, const D: usize>(piece: u32) -> u32 {
    piece / D as u32 * 8 + L::token(piece)
}
