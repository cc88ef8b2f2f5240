//! One page against a tile of query rows: the inner loops.
//!
//! Lanes are rows. Q and O are transposed (`[dim][row]`), so every K or V element is one scalar that
//! multiplies a vector of rows, the softmax runs down the tokens of each lane, and nothing ever adds up
//! across lanes. A block of up to [`MAX_VECTORS`] vectors of rows stays in registers while a core
//! matrix of K or V (8 tokens by 8 dims, contiguous in the page) goes by.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{CORE, element_offset};
use pulp::{Simd, WithSimd};

use super::non_finite::{NonFinite, bits};
use super::simd;

/// Most vectors of rows in a block: with 4 tokens or dims at a time that is 12 accumulators, 3 operands
/// and a broadcast, the 16 registers of AVX2.
pub(super) const MAX_VECTORS: usize = 3;
/// Lanes of the widest vectors that there are.
pub(super) const MAX_LANES: usize = 16;
/// Floats of scratch that a block's probabilities take: `[64 tokens][rows of the block]`.
pub(super) const SCORES: usize = PAGE_TOKENS as usize * MAX_VECTORS * MAX_LANES;

const SIDE: usize = CORE as usize;

/// A work item's rows: queries, and the running softmax over the pages so far.
///
/// Arrays of rows are `stride` long, at least [`MAX_LANES`] more than there are rows, for the last
/// vector reaches beyond them.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    /// `[head_dim][stride]`, scaled so that products are base-2 logits (with a soft cap: logits over
    /// the cap).
    pub(super) q: &'a [f32],
    /// `[head_dim][stride]`, not yet divided by `sum`.
    pub(super) o: &'a mut [f32],
    /// Largest logit: `[stride]`.
    pub(super) max: &'a mut [f32],
    /// Sum of `2^(logit - max)`: `[stride]`.
    pub(super) sum: &'a mut [f32],
    pub(super) stride: usize,
}

/// Which tokens of a mixed page a query sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageMask<'a> {
    /// A word a query of the item, bit `t` for token `t`.
    pub(super) words: &'a [u64],
    /// Rows of a query.
    pub(super) group: usize,
}

/// A page to take into a tile's rows.
#[derive(Debug)]
pub(super) struct PageStep<'a> {
    pub(super) tile: Tile<'a>,
    /// [`SCORES`] floats.
    pub(super) scores: &'a mut [f32],
    /// `[8 token groups][head_dim / 8][8 tokens][8 dims]`.
    pub(super) k: &'a [f32],
    /// As `k`.
    pub(super) v: &'a [f32],
    /// Tokens of the page, 1 or more.
    pub(super) tokens: usize,
    /// The rows that see the page.
    pub(super) rows: Range<usize>,
    pub(super) mask: Option<PageMask<'a>>,
    /// Added to the logits of each token, in natural-logarithm units: `[64]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) non_finite: Option<NonFinite<'a>>,
    /// The cap in base 2.
    pub(super) soft_cap: Option<f32>,
}

impl WithSimd for PageStep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            // Accumulators, a vector's rows and a broadcast have to fit the registers.
            let most = if S::REGISTER_COUNT < 32 { 2 } else { MAX_VECTORS };
            let vectors = (self.rows.end - row).div_ceil(S::F32_LANES).min(most);
            // Few accumulators would wait for each other: fewer vectors, more tokens at a time.
            match vectors {
                1 => self.block::<S, 1, 8>(simd, row),
                2 => self.block::<S, 2, 4>(simd, row),
                _ => self.block::<S, MAX_VECTORS, 4>(simd, row),
            }
            row += vectors * S::F32_LANES;
        }
    }
}

impl PageStep<'_> {
    /// `V` vectors of rows from `row` on, `N` tokens (then dims) at a time; `N` divides 8.
    #[inline(always)]
    fn block<S: Simd, const V: usize, const N: usize>(&mut self, simd: S, row: usize) {
        self.logits::<S, V, N>(simd, row);
        self.add_biases(V * S::F32_LANES);
        self.hide_masked(row, V * S::F32_LANES);
        let decay = self.softmax::<S, V>(simd, row);
        self.values::<S, V, N>(simd, row, decay);
        self.values_apart(row, V * S::F32_LANES);
    }

    /// `scores[token][row] = q[row] . k[token]`, capped.
    #[inline(always)]
    pub(super) fn logits<S: Simd, const V: usize, const N: usize>(&mut self, simd: S, row: usize) {
        let width = V * S::F32_LANES;
        let (k, _) = self.k.as_chunks::<SIDE>();
        let chunks = k.len() / PAGE_TOKENS as usize;
        for first in (0..self.tokens).step_by(N) {
            let group = first / SIDE * chunks * SIDE + first % SIDE;
            let mut sums = [[simd.splat_f32s(0.0); V]; N];
            for chunk in 0..chunks {
                let keys = rows_at::<N>(k, group + chunk * SIDE);
                for dim in 0..SIDE {
                    let at = (chunk * SIDE + dim) * self.tile.stride + row;
                    let q: [S::f32s; V] = load::<S, V>(&self.tile.q[at..at + width]);
                    for (key, sums) in keys.iter().zip(&mut sums) {
                        let key = simd.splat_f32s(key[dim]);
                        for (sum, q) in sums.iter_mut().zip(q) {
                            *sum = simd.mul_add_e_f32s(key, q, *sum);
                        }
                    }
                }
            }
            for (n, mut sums) in sums.into_iter().enumerate() {
                if let Some(cap) = self.soft_cap {
                    let cap = simd.splat_f32s(cap);
                    sums = sums.map(|sum| simd.mul_f32s(simd::tanh(simd, sum), cap));
                }
                let at = (first + n) * width;
                store::<S, V>(&mut self.scores[at..at + width], sums);
            }
        }
    }

    /// Adds each token's bias to its logits.
    pub(super) fn add_biases(&mut self, width: usize) {
        let Some(biases) = self.bias else { return };
        for (logits, bias) in self.scores.chunks_exact_mut(width).zip(&biases[..self.tokens]) {
            let bias = bias * std::f32::consts::LOG2_E;
            logits.iter_mut().for_each(|logit| *logit += bias);
        }
    }

    /// Makes logits -inf where the mask has no bit.
    pub(super) fn hide_masked(&mut self, row: usize, width: usize) {
        let Some(mask) = self.mask else { return };
        let exist = u64::MAX >> (PAGE_TOKENS as usize - self.tokens);
        for lane in 0..width.min(self.rows.end - row) {
            for token in bits(exist & !mask.words[(row + lane) / mask.group]) {
                self.scores[token * width + lane] = f32::NEG_INFINITY;
            }
        }
    }

    /// Turns logits into probabilities relative to the new maximum; returns what the rows' older sums
    /// are multiplied by. Lanes beyond the visible rows keep what they have.
    #[inline(always)]
    fn softmax<S: Simd, const V: usize>(&mut self, simd: S, row: usize) -> [S::f32s; V] {
        let width = V * S::F32_LANES;
        let nothing = simd.splat_f32s(f32::NEG_INFINITY);
        let visible = lanes_below::<S, V>(simd, self.rows.end - row);
        let old: [S::f32s; V] = load::<S, V>(&self.tile.max[row..row + width]);
        let scores = &mut self.scores[..self.tokens * width];
        let mut max = old;
        for token in scores.chunks_exact_mut(width) {
            let mut logits: [S::f32s; V] = load::<S, V>(token);
            for v in 0..V {
                logits[v] = simd.select_f32s(visible[v], logits[v], nothing);
                max[v] = simd.max_f32s(max[v], logits[v]);
            }
            store::<S, V>(token, logits);
        }
        // A row that has seen no token yet: -inf - -inf would be NaN.
        let shift: [S::f32s; V] = std::array::from_fn(|v| {
            let empty = simd.equal_f32s(max[v], nothing);
            simd.select_f32s(empty, simd.splat_f32s(0.0), max[v])
        });
        let mut sum = [simd.splat_f32s(0.0); V];
        for token in scores.chunks_exact_mut(width) {
            let mut weights: [S::f32s; V] = load::<S, V>(token);
            for v in 0..V {
                weights[v] = simd::exp2(simd, simd.sub_f32s(weights[v], shift[v]));
                sum[v] = simd.add_f32s(sum[v], weights[v]);
            }
            store::<S, V>(token, weights);
        }
        let decay: [S::f32s; V] =
            std::array::from_fn(|v| simd::exp2(simd, simd.sub_f32s(old[v], shift[v])));
        let older: [S::f32s; V] = load::<S, V>(&self.tile.sum[row..row + width]);
        for v in 0..V {
            sum[v] = simd.mul_add_e_f32s(older[v], decay[v], sum[v]);
        }
        store::<S, V>(&mut self.tile.max[row..row + width], max);
        store::<S, V>(&mut self.tile.sum[row..row + width], sum);
        decay
    }

    /// `o[dim][row] = o[dim][row] * decay[row] + sum over tokens of p[token][row] * v[token][dim]`.
    #[inline(always)]
    fn values<S: Simd, const V: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        decay: [S::f32s; V],
    ) {
        let width = V * S::F32_LANES;
        let (v, _) = self.v.as_chunks::<SIDE>();
        let chunks = v.len() / PAGE_TOKENS as usize;
        let weights = &self.scores[..self.tokens * width];
        for first in (0..chunks * SIDE).step_by(N) {
            let (chunk, within) = (first / SIDE, first % SIDE);
            let at = |n: usize| (first + n) * self.tile.stride + row;
            let mut sums: [[S::f32s; V]; N] = std::array::from_fn(|n| {
                let old: [S::f32s; V] = load::<S, V>(&self.tile.o[at(n)..at(n) + width]);
                std::array::from_fn(|v| simd.mul_f32s(old[v], decay[v]))
            });
            for (group, weights) in weights.chunks(SIDE * width).enumerate() {
                let values = rows_at::<SIDE>(v, (group * chunks + chunk) * SIDE);
                for (weights, value) in weights.chunks_exact(width).zip(values) {
                    let weights: [S::f32s; V] = load::<S, V>(weights);
                    let value: &[f32; N] = value[within..].first_chunk().expect("N divides 8");
                    for (value, sums) in value.iter().zip(&mut sums) {
                        let value = simd.splat_f32s(*value);
                        for (sum, weight) in sums.iter_mut().zip(weights) {
                            *sum = simd.mul_add_e_f32s(value, weight, *sum);
                        }
                    }
                }
            }
            for (n, sums) in sums.into_iter().enumerate() {
                let at = at(n);
                store::<S, V>(&mut self.tile.o[at..at + width], sums);
            }
        }
    }

    /// Adds the tokens that are zeros in `v` to the rows that see them.
    fn values_apart(&mut self, row: usize, width: usize) {
        let Some(apart) = self.non_finite else { return };
        let head_dim = self.v.len() / PAGE_TOKENS as usize;
        for lane in 0..width.min(self.rows.end - row) {
            let seen = self.mask.map_or(u64::MAX, |mask| mask.words[(row + lane) / mask.group]);
            for token in bits(apart.tokens & seen) {
                let weight = self.scores[token * width + lane];
                for dim in 0..head_dim {
                    let at = element_offset(head_dim as u32, token as u32, dim as u32);
                    self.tile.o[dim * self.tile.stride + row + lane] +=
                        weight * apart.v[at as usize];
                }
            }
        }
    }
}

/// Lanes whose row, counted from the block's first, is below `count`.
#[inline(always)]
pub(super) fn lanes_below<S: Simd, const V: usize>(simd: S, count: usize) -> [S::m32s; V] {
    let mut index = [0.0; MAX_LANES];
    for (lane, index) in index.iter_mut().enumerate() {
        *index = lane as f32;
    }
    let [index] = load::<S, 1>(&index[..S::F32_LANES]);
    std::array::from_fn(|v| {
        let left = count as f32 - (v * S::F32_LANES) as f32;
        simd.less_than_f32s(index, simd.splat_f32s(left))
    })
}

#[inline(always)]
fn rows_at<const N: usize>(rows: &[[f32; SIDE]], at: usize) -> &[[f32; SIDE]; N] {
    rows[at..].first_chunk().expect("the page has whole groups")
}

#[inline(always)]
pub(super) fn load<S: Simd, const V: usize>(slice: &[f32]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(slice);
    *vectors.first_chunk().expect("V vectors")
}

#[inline(always)]
fn store<S: Simd, const V: usize>(slice: &mut [f32], values: [S::f32s; V]) {
    let (vectors, _) = S::as_mut_simd_f32s(slice);
    *vectors.first_chunk_mut().expect("V vectors") = values;
}

#[cfg(test)]
mod tests;
