//! How much queries attend to each token: a pass over K with the LSE that attention gave.
//!
//! Of a page `K Q^T` is computed, tokens by rows, so that what is asked of a token is a reduction over columns. A thread
//! has tokens `lane / 4` and 8 more of sixteen, and of each columns `8 j + 2 (lane % 4)` and the next.

pub mod ampere;
pub mod hopper;
mod narrow;
mod ring;

use super::page::PartialPage;
use super::program::Program;
use super::query::{Group, RowMap};
use super::rows::{Logits, quad_max, quad_sum};
use crate::abi::{
    CELL_BIASED, Cell, NONE, PAGE_TOKENS, SCORE_LAST, SCORE_MAX, SCORE_SUM, WorkItem,
};
use device::atomic::{self, Order, Scope};
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::{global, math, register, warp};

const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// What a `score` launch reads and writes. Grid: `[shares, kv_heads]`. With `p = exp(logit + bias - lse)` a token's score
/// is changed by those rows that see it, of all query heads of the KV head.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub q: *const u16,
    /// The layer's pages, as of `attend`.
    pub pool: *const u16,
    /// The layer's directory, `[kv_heads][cell_stride]`, linked ([`crate::directory`]); null where all of the programs'
    /// pages are native.
    pub cells: *const Cell,
    /// The layer's biases, `[cell][64]`, natural logarithms; read where a cell says that it has some.
    pub biases: *const f32,
    /// The plan's programs, `[shares][stride]` words.
    pub programs: *const u32,
    /// The plan's masks.
    pub masks: *const u64,
    /// Node lengths by slot.
    pub lengths: *const u32,
    /// `[queries, q_heads]`, natural logarithm. A row whose LSE is not finite is left out.
    pub lse: *const f32,
    /// Tokens that each query sees, `[queries]`; a query with 0 is left out.
    pub visible: *const u32,
    /// The layer's scores, `[cell][64]`, of 32 bits.
    pub scores: *mut u32,
    /// Words from one program to the next; a multiple of 4.
    pub stride: u32,
    /// Cells from a KV head's first to the next head's.
    pub cell_stride: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Query heads a KV head.
    pub group: u32,
    /// Logit scale times log2(e).
    pub scale_log2: f32,
    /// Logits `s` become `cap tanh(s / cap)`; 0 for none.
    pub soft_cap: f32,
    /// [`SCORE_LAST`], [`SCORE_SUM`] or [`SCORE_MAX`].
    pub reduce: u32,
}

impl Score {
    /// A share's program.
    #[inline(always)]
    unsafe fn program(&self, share: u32) -> *const u32 {
        // SAFETY: the share is one of the plan's.
        unsafe { self.programs.add(share as usize * self.stride as usize) }
    }
}

/// What every thread of a block knows.
#[derive(Clone, Copy)]
struct Block {
    score: Score,
    shared: Shared<u8>,
    thread: u32,
    kv_head: u32,
    group: Group,
    logits: Logits,
    program: Program,
    items: u32,
}

impl Block {
    #[inline(always)]
    fn new(score: Score, shared: Shared<u8>, thread: u32, kv_head: u32, program: Program) -> Self {
        Self {
            shared,
            thread,
            kv_head,
            group: Group::new(score.group),
            logits: Logits::new(score.scale_log2, score.soft_cap),
            program,
            items: 0,
            score,
        }
    }

    /// Where the rows of `item` lie.
    #[inline(always)]
    fn row_map(&self, item: &WorkItem) -> RowMap {
        RowMap::new(item, self.program, self.group, self.score.kv_heads, self.kv_head)
    }

    /// Asks for the LSE of one of an item's rows, and for the tokens that its query sees; both 0 past the last row. They are
    /// on their way when this returns.
    #[inline(always)]
    unsafe fn ask_row(&self, map: &RowMap, row: u32) -> (f32, u32) {
        if row >= map.rows {
            return (0.0, 0);
        }
        // SAFETY: the item has the row, and its query a number.
        unsafe {
            let lse = global::load_f32(self.score.lse.add(map.head_index(row)));
            let visible = self.score.visible.add(map.query_row(row) as usize);
            (lse, global::load_u32(visible))
        }
    }

    /// What is kept of a row: see [`Totals`].
    #[inline(always)]
    fn kept(&self, (lse, visible): (f32, u32)) -> [u32; 2] {
        // A NaN compares as false.
        if visible > 0 && lse < f32::INFINITY && lse > f32::NEG_INFINITY {
            let last = self.score.reduce == SCORE_LAST;
            let threshold = if last { math::log2(visible as f32) } else { 0.0 };
            [math::fma(lse, -LOG2_E, threshold).to_bits(), visible]
        } else {
            [f32::NEG_INFINITY.to_bits(), 0]
        }
    }
}

/// What a thread has of its two tokens. Of its rows it is told two words each: what is added to the exponents of logits,
/// minus infinity for a row that is left out, and `t`. For [`SCORE_LAST`] a sum of at least 0 counts, of the others the power of
/// two is `p`.
#[derive(Clone, Copy)]
struct Totals {
    /// Base 2.
    bias: [f32; 2],
    /// Numbers of tokens for [`SCORE_LAST`], else floats: exponents for [`SCORE_MAX`].
    bits: [u32; 2],
}

impl Totals {
    /// Of no row; the thread's tokens are rows `token` and 8 further of a cell.
    ///
    /// # Safety
    /// The layer has the cell, with biases if the page has.
    #[inline(always)]
    unsafe fn new(block: &Block, page: PartialPage, cell: u32, token: u32) -> Self {
        let mut bias = [0.0; 2];
        if page.place & CELL_BIASED != 0 {
            let first = cell as usize * PAGE_TOKENS as usize + token as usize;
            // SAFETY: the caller's.
            bias = core::array::from_fn(|e| unsafe {
                global::load_f32(block.score.biases.add(first + 8 * e)) * LOG2_E
            });
        }
        let nothing = if block.score.reduce == SCORE_MAX { f32::NEG_INFINITY.to_bits() } else { 0 };
        Self { bias, bits: [nothing; 2] }
    }

    /// Takes the thread's logits of rows in: of those that begin at shared address `rows`.
    ///
    /// # Safety
    /// The rows are there.
    #[inline(always)]
    unsafe fn add<const N: usize>(&mut self, s: &[f32; N], block: &Block, rows: Shared<[u32; 2]>) {
        let rows: Shared<[u32; 4]> = rows.at(block.thread % 4 * 2).cast();
        // SAFETY: the caller's.
        let pair = |j: usize| unsafe { rows.at(4 * j as u32).load() };
        let exponent =
            |i: usize, offset: u32| math::fma(s[i], block.logits.scale, f32::from_bits(offset));
        // Predicates that hold through the loop over pages would leave one for all comparisons.
        match register::late(block.score.reduce) {
            SCORE_LAST => {
                for j in 0..N / 4 {
                    let [first, first_sees, second, second_sees] = pair(j);
                    for e in 0..2 {
                        for (c, offset, sees) in [(0, first, first_sees), (1, second, second_sees)]
                        {
                            if exponent(4 * j + 2 * e + c, offset) >= -self.bias[e] {
                                self.bits[e] = self.bits[e].max(sees);
                            }
                        }
                    }
                }
            }
            SCORE_SUM => {
                let mut sums = [0.0; 2];
                for j in 0..N / 4 {
                    let [first, _, second, _] = pair(j);
                    for e in 0..2 {
                        for (c, offset) in [(0, first), (1, second)] {
                            let x = exponent(4 * j + 2 * e + c, offset) + self.bias[e];
                            // A row that is left out may have no number here: it then is minus infinity.
                            sums[e] += math::exp2(math::max(x, f32::NEG_INFINITY));
                        }
                    }
                }
                self.bits = [0, 1].map(|e| (f32::from_bits(self.bits[e]) + sums[e]).to_bits());
            }
            _ => {
                let mut tops = self.bits.map(f32::from_bits);
                for j in 0..N / 4 {
                    let [first, _, second, _] = pair(j);
                    for e in 0..2 {
                        for (c, offset) in [(0, first), (1, second)] {
                            tops[e] = math::max(tops[e], exponent(4 * j + 2 * e + c, offset));
                        }
                    }
                }
                self.bits = tops.map(f32::to_bits);
            }
        }
    }

    /// Changes the scores of the tokens, of which the thread's first is row `token` of the cell.
    ///
    /// # Safety
    /// The warp is whole, and has the same tokens in the four threads of a quad; the layer has the cell.
    #[inline(always)]
    unsafe fn store(self, block: &Block, page: PartialPage, cell: u32, token: u32) {
        let [reduce, thread] = [block.score.reduce, block.thread].map(register::late);
        // SAFETY: the caller's.
        let [first, second] = self.bits.map(|bits| unsafe {
            match reduce {
                SCORE_LAST => quad_max_u32(bits),
                SCORE_SUM => quad_sum(f32::from_bits(bits)).to_bits(),
                _ => quad_max(f32::from_bits(bits)).to_bits(),
            }
        });
        // Two of a quad's threads have a token each.
        let e = thread % 4;
        let (bits, bias) = if e == 0 { (first, self.bias[0]) } else { (second, self.bias[1]) };
        let token = token + 8 * e;
        let tokens = if page.tokens == 0 { PAGE_TOKENS } else { page.tokens };
        if e >= 2 || token >= tokens {
            return;
        }
        // Of numbers that are not negative the bits are in order too.
        let bits = if reduce == SCORE_MAX {
            math::exp2(f32::from_bits(bits) + bias).to_bits()
        } else {
            bits
        };
        if bits == 0 {
            return;
        }
        let place = cell as usize * PAGE_TOKENS as usize + token as usize;
        // SAFETY: the layer has scores of the cell, which are changed by atomics only.
        unsafe {
            let score = block.score.scores.add(place);
            if reduce == SCORE_SUM {
                let p = f32::from_bits(bits);
                atomic::fetch_add_f32(score.cast(), p, Order::Relaxed, Scope::Device);
            } else {
                atomic::fetch_max_u32(score, bits, Order::Relaxed, Scope::Device);
            }
        }
    }
}

#[inline(always)]
unsafe fn quad_max_u32(x: u32) -> u32 {
    // SAFETY: the caller's warp is whole.
    unsafe {
        let x = x.max(warp::warp_shuffle_xor(FULL_MASK, x, 1));
        x.max(warp::warp_shuffle_xor(FULL_MASK, x, 2))
    }
}

/// Removes the logits of rows that do not see a token: `s` are those of rows `first + 8 j` and the next, for token `token`
/// of the page and the one 8 further.
#[inline(always)]
unsafe fn hide<const N: usize>(
    s: &mut [f32; N],
    block: &Block,
    item: &WorkItem,
    page: PartialPage,
    token: u32,
    first: u32,
) {
    let place = page.place & !CELL_BIASED;
    // SAFETY: the segment is one of the program's.
    let segment = unsafe { block.program.segment(block.items, place & 0xffff) };
    for j in 0..N / 4 {
        for c in 0..2 {
            let query = block.group.query(first + 8 * j as u32 + c as u32);
            let seen = if query < segment.visible_begin() || query >= segment.visible_end() {
                0
            } else if segment.mask != NONE {
                let word = segment.mask + (place >> 16) * item.query_count + query;
                // SAFETY: masks reach over all pages and queries of the segment.
                unsafe { global::load_u64(block.score.masks.add(word as usize)) }
            } else {
                u64::MAX >> (64 - page.tokens)
            };
            let seen = seen >> token;
            for e in 0..2 {
                if seen & (1 << (8 * e)) == 0 {
                    s[4 * j + 2 * e + c] = f32::NEG_INFINITY;
                }
            }
        }
    }
}
