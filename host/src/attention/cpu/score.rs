//! The score pass: what queries made of a page's tokens.

use std::cell::RefCell;

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{half_page_elements, prefix_elements};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::item::{Call, Seen, stride_of};
use super::simd;
use super::tile::{MAX_LANES, MAX_VECTORS, PageStep, SCORES, Tile, lanes_below, load};
use crate::attention::Reduce;
use crate::cache::{HostPages, KvElement};
use crate::format::KvFormat;
use crate::plan::Item;

const TOKENS: usize = PAGE_TOKENS as usize;

/// The scores of a cell.
pub(super) type Cell = [u32; TOKENS];

/// What all items of a score pass have in common.
pub(super) struct Pass<'a, T> {
    /// Of pages of this cache.
    pub(super) call: Call<'a, T>,
    /// `[queries, q_heads]`, natural logarithm.
    pub(super) lse: &'a [f32],
    /// `[queries]`.
    pub(super) visible: &'a [u32],
    pub(super) reduce: Reduce,
}

/// A thread's memory, kept from item to item.
#[derive(Debug, Default)]
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    page: Vec<f32>,
    /// Of each row the LSE in base 2; infinity for a row that is left out.
    lse: Vec<f32>,
    /// Of each row how many tokens it sees.
    visible: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: KvElement> Pass<'_, T> {
    /// Adds to a layer's plane. Shares run side by side, their results are taken up in order: so sums do not depend on the
    /// threads.
    pub(super) fn run(&self, plane: &mut [Cell]) {
        let shares = self.call.plan.shares();
        let tasks = (0..self.call.kv_heads * shares).into_par_iter().with_max_len(1);
        let scores = tasks.map(|task| self.share(task % shares, task / shares));
        for (cell, scores) in scores.collect::<Vec<_>>().into_iter().flatten() {
            for (old, new) in plane[cell as usize].iter_mut().zip(scores) {
                *old = match self.reduce {
                    Reduce::Sum => (f32::from_bits(*old) + f32::from_bits(new)).to_bits(),
                    // Of floats that are not negative the larger has the larger bits.
                    Reduce::Last | Reduce::Max => new.max(*old),
                };
            }
        }
    }

    /// The scores of the cells that a share reads.
    fn share(&self, share: u32, kv_head: u32) -> Vec<(u32, Cell)> {
        let mut scores = Vec::new();
        for item in self.call.plan.share(share).items() {
            SCRATCH.with_borrow_mut(|scratch| {
                if self.gather(&item, kv_head, scratch) {
                    self.call.pages(&item, kv_head, |seen| {
                        if let Some(cell) = self.cell(&seen) {
                            scores.push((cell, self.page(scratch, seen)));
                        }
                    });
                }
            });
        }
        scores
    }

    /// The cell of a page; `None` if it is of a format without scores.
    fn cell(&self, seen: &Seen<'_>) -> Option<u32> {
        (seen.format == KvFormat::Native).then(|| seen.page * self.call.kv_heads + seen.slot)
    }

    /// Queries, LSE and `t` of an item's rows; whether any of them counts.
    fn gather(&self, item: &Item<'_>, kv_head: u32, scratch: &mut Scratch) -> bool {
        let group = self.call.group();
        let q_heads = group * self.call.kv_heads as usize;
        let stride = stride_of(item.record.query_count as usize * group);
        scratch.lse.clear();
        scratch.visible.clear();
        for row in item.rows() {
            let visible = self.visible[row as usize];
            let first = row as usize * q_heads + kv_head as usize * group;
            for &lse in &self.lse[first..first + group] {
                let counts = visible > 0 && lse.is_finite();
                let lse = if counts { lse * std::f32::consts::LOG2_E } else { f32::INFINITY };
                scratch.lse.push(lse);
                scratch.visible.push(visible as f32);
            }
        }
        if scratch.lse.iter().all(|&lse| lse == f32::INFINITY) {
            return false;
        }
        scratch.lse.resize(stride, f32::INFINITY);
        scratch.visible.resize(stride, 0.0);
        scratch.q.clear();
        scratch.q.resize(self.call.head_dim() * stride, 0.0);
        scratch.scores.resize(SCORES, 0.0);
        self.call.gather(item, kv_head, &mut scratch.q, stride);
        true
    }

    fn page(&self, scratch: &mut Scratch, seen: Seen<'_>) -> Cell {
        let elements = prefix_elements(self.call.head_dim, seen.tokens) as usize;
        let Scratch { q, scores, page, lse, visible } = scratch;
        let stride = lse.len();
        let k = self.call.keys(&seen, elements, page);
        let mut sums = [[0.0; MAX_LANES]; TOKENS];
        let tokens = seen.tokens as usize;
        self.call.arch.dispatch(ScoreStep {
            page: PageStep {
                tile: Tile { q, o: &mut [], max: &mut [], sum: &mut [], stride },
                scores,
                k,
                v: &[],
                tokens,
                rows: seen.rows,
                mask: seen.mask,
                bias: seen.bias,
                non_finite: None,
                soft_cap: self.call.params.soft_cap.map(|cap| cap * std::f32::consts::LOG2_E),
            },
            lse,
            visible,
            reduce: self.reduce,
            sums: &mut sums,
        });
        std::array::from_fn(|token| {
            let lanes = sums[token].iter();
            match self.reduce {
                Reduce::Sum => lanes.sum::<f32>().to_bits(),
                Reduce::Max => lanes.copied().fold(0.0, f32::max).to_bits(),
                Reduce::Last => lanes.copied().fold(0.0, f32::max) as u32,
            }
        })
    }
}

/// A page whose tokens are scored by the rows of a tile.
struct ScoreStep<'a> {
    /// Without values.
    page: PageStep<'a>,
    /// `[stride]`
    lse: &'a [f32],
    /// `[stride]`
    visible: &'a [f32],
    reduce: Reduce,
    /// What the lanes have of each token.
    sums: &'a mut [[f32; MAX_LANES]; TOKENS],
}

impl WithSimd for ScoreStep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = self.page.rows.start;
        while row < self.page.rows.end {
            let most = if S::REGISTER_COUNT < 32 { 2 } else { MAX_VECTORS };
            let vectors = (self.page.rows.end - row).div_ceil(S::F32_LANES).min(most);
            match vectors {
                1 => self.block::<S, 1, 8>(simd, row),
                2 => self.block::<S, 2, 4>(simd, row),
                _ => self.block::<S, MAX_VECTORS, 4>(simd, row),
            }
            row += vectors * S::F32_LANES;
        }
    }
}

impl ScoreStep<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize, const N: usize>(&mut self, simd: S, row: usize) {
        let width = V * S::F32_LANES;
        self.page.logits::<S, V, N>(simd, row);
        self.page.add_biases(width);
        self.page.hide_masked(row, width);
        match self.reduce {
            Reduce::Last => self.reduce::<S, V>(simd, row, |p, t, sum| {
                let important =
                    simd.less_than_or_equal_f32s(simd.splat_f32s(1.0), simd.mul_f32s(p, t));
                simd.max_f32s(sum, simd.select_f32s(important, t, simd.splat_f32s(0.0)))
            }),
            Reduce::Sum => self.reduce::<S, V>(simd, row, |p, _, sum| simd.add_f32s(sum, p)),
            Reduce::Max => self.reduce::<S, V>(simd, row, |p, _, sum| simd.max_f32s(sum, p)),
        }
    }

    /// Takes the rows' probabilities up: `take(p, visible, sum)`.
    #[inline(always)]
    fn reduce<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        take: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
    ) {
        let width = V * S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let seen = lanes_below::<S, V>(simd, self.page.rows.end - row);
        let lse: [S::f32s; V] = load::<S, V>(&self.lse[row..row + width]);
        let visible: [S::f32s; V] = load::<S, V>(&self.visible[row..row + width]);
        let scores = &self.page.scores[..self.page.tokens * width];
        for (logits, sums) in scores.chunks_exact(width).zip(self.sums.iter_mut()) {
            let logits: [S::f32s; V] = load::<S, V>(logits);
            let (sums, _) = S::as_mut_simd_f32s(sums);
            for v in 0..V {
                let p = simd::exp2(simd, simd.sub_f32s(logits[v], lse[v]));
                // Of a row that is left out the logit may be NaN.
                let p = simd.select_f32s(simd.less_than_f32s(zero, p), p, zero);
                let p = simd.select_f32s(seen[v], p, zero);
                sums[0] = take(p, visible[v], sums[0]);
            }
        }
    }
}

/// The planes of a cache's scores, by layer; none before the first score.
#[derive(Debug, Default)]
pub(super) struct Planes {
    layers: Vec<Vec<Cell>>,
}

impl Planes {
    /// A layer's plane.
    pub(super) fn layer<T>(&mut self, pages: &HostPages<T>, layer: u32) -> &mut Vec<Cell>
    where
        T: KvElement,
    {
        let shape = pages.shape();
        self.layers.resize_with(shape.layers as usize, Vec::new);
        let plane = &mut self.layers[layer as usize];
        if plane.is_empty() {
            *plane = vec![[0; TOKENS]; shape.pages as usize * shape.kv_heads as usize];
        }
        plane
    }

    /// Makes the scores of pages 0.
    pub(super) fn clear(&mut self, pages: &[u32], kv_heads: u32) {
        for plane in self.layers.iter_mut().filter(|plane| !plane.is_empty()) {
            for &page in pages {
                let first = (page * kv_heads) as usize;
                plane[first..first + kv_heads as usize].fill([0; TOKENS]);
            }
        }
    }

    /// Reads the scores of cells.
    pub(super) fn read(&self, layer: u32, cells: &[u32], scores: &mut [u32]) {
        let (scores, _) = scores.as_chunks_mut::<TOKENS>();
        let plane = self.layers.get(layer as usize).filter(|plane| !plane.is_empty());
        for (scores, &cell) in scores.iter_mut().zip(cells) {
            *scores = plane.map_or([0; TOKENS], |plane| plane[cell as usize]);
        }
    }
}

impl<T: KvElement> Call<'_, T> {
    /// As [`Call::widened`], of K alone where that is less work.
    fn keys<'a>(&'a self, seen: &Seen<'_>, elements: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        match self.native_keys(seen) {
            Some(k) if T::DTYPE != crate::cache::DType::F32 => {
                let half = half_page_elements(self.head_dim) as usize;
                room.resize(2 * half, 0.0);
                self.arch.dispatch(|| T::widen(&k[..elements], &mut room[..elements]));
                &room[..half]
            }
            _ => self.widened(seen, elements, room).0,
        }
    }
}
