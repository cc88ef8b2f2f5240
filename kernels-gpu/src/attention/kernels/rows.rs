//! What a thread holds of its rows: in every tensor-core fragment used here a thread has columns
//! `8 j + 2 (lane % 4)` and the next of rows `lane / 4` and `lane / 4 + 8` of a 16-row block
//! (PTX ISA, "Matrix fragments for mma.m16n8k16" and "Register fragments for wgmma").

use super::block::{Block, Work};
use super::page::PartialPage;
use crate::abi::{CELL_BIASED, NONE, PAGE_TOKENS};
use crate::softmax::Partial;
use device::warp::FULL_MASK;
use device::{global, math, warp};

const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// How logits become exponents.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    /// Scale times log2(e); with a soft cap, what the capped logit is multiplied with.
    pub(super) scale: f32,
    /// `scale / soft_cap` in natural units, or 0 without a soft cap.
    pub(super) cap_scale: f32,
}

impl Logits {
    /// Of logits that are exponents already.
    pub(super) const SCALED: Self = Self { scale: 1.0, cap_scale: 0.0 };

    /// For a logit scale times log2(e), and a soft cap or 0.
    #[inline(always)]
    pub(super) fn new(scale_log2: f32, soft_cap: f32) -> Self {
        if soft_cap == 0.0 {
            Self { scale: scale_log2, cap_scale: 0.0 }
        } else {
            let scale = soft_cap * LOG2_E;
            Self { scale, cap_scale: scale_log2 * math::reciprocal(scale) }
        }
    }
}

/// Running softmax of a thread's two rows. Sums are the thread's own share of a row.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Reference exponent: at least the largest scaled logit minus [`SLACK`].
    pub(super) max: [f32; 2],
    /// Sum of `2^(s - max)` over this thread's columns.
    pub(super) sum: [f32; 2],
}

/// A row's reference exponent is raised only when it is this far behind: `2^8` is harmless in f32, and
/// most pages then leave the accumulators alone.
const SLACK: f32 = 8.0;

impl Rows {
    /// No token seen.
    pub(super) const EMPTY: Self = Self { max: [f32::NEG_INFINITY; 2], sum: [0.0; 2] };

    /// Turns a page's logits into probabilities; returns what the accumulators must be multiplied with, if
    /// anything.
    ///
    /// `s[4 j + 2 e + c]` belongs to row `e`, column `8 j + c` of the thread's.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    pub(super) unsafe fn update<const N: usize>(
        &mut self,
        s: &mut [f32; N],
        logits: Logits,
    ) -> Option<[f32; 2]> {
        let mut tops = [s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]];
        for i in 8..N {
            tops[i % 8] = math::max(tops[i % 8], s[i]);
        }
        let top: [f32; 2] = core::array::from_fn(|e| {
            let [a, b] = [
                math::max(tops[2 * e], tops[2 * e + 1]),
                math::max(tops[4 + 2 * e], tops[5 + 2 * e]),
            ];
            math::max(a, b) * logits.scale
        });
        // A thread's own columns say as much as its row's would: the vote is over all of them. So rows
        // are reduced over their threads only when a reference moves.
        let behind = top[0] > self.max[0] + SLACK || top[1] > self.max[1] + SLACK;
        // SAFETY: the caller's.
        let rescale = if unsafe { warp::warp_vote_any(FULL_MASK, behind) } {
            let mut factor = [1.0; 2];
            for e in 0..2 {
                // SAFETY: the caller's; the vote takes all lanes here together.
                let raised = math::max(self.max[e], unsafe { quad_max(top[e]) });
                // A row that has seen nothing keeps a finite reference: -inf - -inf is not a number.
                let reference = if raised == f32::NEG_INFINITY { 0.0 } else { raised };
                factor[e] = math::exp2(self.max[e] - reference);
                self.max[e] = raised;
                self.sum[e] *= factor[e];
            }
            Some(factor)
        } else {
            None
        };
        let mut reference = self.max;
        for e in 0..2 {
            if reference[e] == f32::NEG_INFINITY {
                reference[e] = 0.0;
            }
        }
        let mut sums = [self.sum[0], 0.0, self.sum[1], 0.0, 0.0, 0.0, 0.0, 0.0];
        for i in 0..N {
            s[i] = math::exp2(math::fma(s[i], logits.scale, -reference[i / 2 % 2]));
            sums[i % 8] += s[i];
        }
        self.sum =
            [(sums[0] + sums[1]) + (sums[4] + sums[5]), (sums[2] + sums[3]) + (sums[6] + sums[7])];
        rescale
    }

    /// Row `e` as a partial result, once reduced.
    #[inline(always)]
    pub(super) fn partial(&self, e: usize) -> Partial {
        Partial { max: self.max[e], sum: self.sum[e] }
    }

    /// Adds up the four threads of each row.
    #[inline(always)]
    pub(super) unsafe fn reduce(&mut self) {
        for e in 0..2 {
            // SAFETY: the caller's.
            self.sum[e] = unsafe { quad_sum(self.sum[e]) };
        }
    }
}

/// Squashes logits when there is a soft cap: `tanh(s scale / cap)`, the cap itself is in the scale.
#[inline(always)]
pub(super) fn soft_cap<const N: usize>(s: &mut [f32; N], logits: Logits) {
    if logits.cap_scale != 0.0 {
        for x in s.iter_mut() {
            *x = math::tanh(*x * logits.cap_scale);
        }
    }
}

/// Scales logits, those of tokens `first + 8 j` and the next of the page, and adds the biases of its cell if it has some:
/// how the sums become exponents, as [`Logits::SCALED`] says.
///
/// # Safety
/// The layer has the cell, with biases if the page has.
#[inline(always)]
pub(super) unsafe fn add_biases<const N: usize>(
    s: &mut [f32; N],
    block: &Block,
    page: PartialPage,
    cell: u32,
    first: u32,
) {
    let scale = block.logits.scale;
    if page.place & CELL_BIASED == 0 {
        for x in s.iter_mut() {
            *x *= scale;
        }
    } else {
        let place = cell as usize * PAGE_TOKENS as usize + first as usize;
        for j in 0..N / 4 {
            // SAFETY: the caller's.
            let biases = unsafe { global::load_v2_f32(block.biases.add(place + 8 * j)) };
            for i in 0..4 {
                s[4 * j + i] = math::fma(s[4 * j + i], scale, biases[i % 2] * LOG2_E);
            }
        }
    }
}

/// Removes the logits of tokens that a row does not see: `s` are those of rows `row` and `row + 8` of the item
/// for tokens `first + 8 j` and the next.
#[inline(always)]
pub(super) unsafe fn hide<const N: usize>(
    s: &mut [f32; N],
    work: &Work,
    page: PartialPage,
    row: u32,
    first: u32,
) {
    // SAFETY: the segment is one of the program's.
    let segment = unsafe { work.program.segment(work.items, page.place & 0xffff) };
    // SAFETY: the item is one of the program's.
    let query_count = unsafe { work.item() }.query_count;
    for e in 0..2 {
        let query = work.block.group.query(row + 8 * e as u32);
        let seen = if query < segment.visible_begin() || query >= segment.visible_end() {
            0
        } else if segment.mask != NONE {
            let word = segment.mask + (page.place >> 16) * query_count + query;
            // SAFETY: masks reach over all pages and queries of the segment.
            unsafe { global::load_u64(work.block.masks.add(word as usize)) }
        } else {
            u64::MAX >> (64 - page.tokens)
        };
        let seen = seen >> first;
        for j in 0..N / 4 {
            for c in 0..2 {
                if seen & (1 << (8 * j + c)) == 0 {
                    s[4 * j + 2 * e + c] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn quad_max(x: f32) -> f32 {
    // SAFETY: the caller's warp is whole.
    unsafe {
        let x = math::max(x, warp::warp_shuffle_xor(FULL_MASK, x, 1));
        math::max(x, warp::warp_shuffle_xor(FULL_MASK, x, 2))
    }
}

#[inline(always)]
pub(super) unsafe fn quad_sum(x: f32) -> f32 {
    // SAFETY: the caller's warp is whole.
    unsafe {
        let x = x + warp::warp_shuffle_xor(FULL_MASK, x, 1);
        x + warp::warp_shuffle_xor(FULL_MASK, x, 2)
    }
}
