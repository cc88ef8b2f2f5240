//! Keys, values and queries.

use bytemuck::Pod;
use deft::attention::{AttentionParams, Backend, Counters};
use deft::cache::{CacheShape, KvElement};
use deft::plan::HeadShape;
use deft::tree::TreeView;
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::random::word;
use rayon::prelude::*;

/// K and V of a layer's pages, rounded to `T`, and queries.
///
/// Values are close to normal with deviation 1; the seed alone decides them, whatever the machine and its threads.
#[derive(Clone, Debug)]
pub struct Inputs<T> {
    /// The layer's heads.
    pub heads: HeadShape,
    /// Numbers of the model.
    pub params: AttentionParams,
    /// `[queries, q_heads, head_dim]`, in the order of [`TreeView::query_order`]'s rows.
    pub q: Vec<T>,
    /// `[pages * 64, kv_heads, head_dim]`; NaN in places without a token: whatever a former owner left there, kernels
    /// must not let it through.
    pub k: Vec<T>,
    /// As `k`.
    pub v: Vec<T>,
}

impl<T: KvElement> Inputs<T> {
    /// Random K and V of the first `filled[page]` tokens of each page, and random queries.
    pub fn random(
        heads: HeadShape,
        params: AttentionParams,
        filled: &[u32],
        queries: u32,
        seed: u64,
    ) -> Self {
        let row = (heads.kv_heads * heads.head_dim) as usize;
        let page = PAGE_TOKENS as usize * row;
        let [mut k, mut v] = [(); 2].map(|()| unwritten::<T>(filled.len() * page));
        let pages = k.par_chunks_mut(page).zip(v.par_chunks_mut(page));
        let pages = pages.zip(filled).enumerate();
        pages.for_each(|(number, ((k, v), &tokens))| {
            let pairs = k.iter_mut().zip(v).take(tokens as usize * row);
            for (at, (k, v)) in ((number * page) as u64..).zip(pairs) {
                [*k, *v] = normal(word(seed, at)).map(T::from_f32);
            }
        });
        let q = (queries * heads.q_heads * heads.head_dim) as usize;
        let values = (0..q as u64).into_par_iter();
        let values = values.map(|at| T::from_f32(normal(word(!seed, at))[0]));
        Self { heads, params, q: values.collect(), k, v }
    }

    /// Random values for all tokens of `view` and its queries.
    pub fn of_view(view: &TreeView, heads: HeadShape, params: AttentionParams, seed: u64) -> Self {
        let pages = view.pages.iter().max().map_or(1, |page| page + 1);
        let mut filled = vec![0; pages as usize];
        for run in &view.runs {
            let pages = &view.pages[run.pages.start as usize..run.pages.end as usize];
            for (&page, before) in pages.iter().zip((0..).step_by(PAGE_TOKENS as usize)) {
                // Nodes of a draft share pages: a page is filled as far as the last of them is.
                let held = run.tokens.saturating_sub(before).min(PAGE_TOKENS);
                filled[page as usize] = held.max(filled[page as usize]);
            }
        }
        Self::random(heads, params, &filled, view.queries, seed)
    }

    /// K and V of the tokens at `places` (page times 64 plus token of the page), row by row.
    pub fn rows_at(&self, places: &[u32]) -> [Vec<T>; 2] {
        let row = self.row();
        [&self.k, &self.v].map(|rows| {
            let rows = places.iter().flat_map(|&place| &rows[place as usize * row..][..row]);
            rows.copied().collect()
        })
    }

    /// Makes a few rows of queries steep: one token outweighs all others. Six times is as far as `f32` stays
    /// within its tolerance, whose rounding grows with the logits.
    pub fn steepen(&mut self) {
        let rows = self.q.chunks_exact_mut(self.heads.head_dim as usize);
        for value in rows.step_by(7).flatten() {
            *value = T::from_f32(value.to_f32() * 6.0);
        }
    }

    /// The shape of a cache of `layers` that has these pages.
    pub fn shape(&self, layers: u32) -> CacheShape {
        let tokens = self.k.len() / self.row();
        CacheShape {
            layers,
            kv_heads: self.heads.kv_heads,
            head_dim: self.heads.head_dim,
            dtype: T::DTYPE,
            pages: tokens as u32 / PAGE_TOKENS,
        }
    }

    /// Elements of a token's K.
    pub fn row(&self) -> usize {
        (self.heads.kv_heads * self.heads.head_dim) as usize
    }

    /// Writes K and V, the NaNs included, to a layer of `backend`.
    ///
    /// # Panics
    /// If it refuses.
    pub fn store(&self, backend: &mut dyn Backend, layer: u32) {
        let targets: Vec<u32> = (0..backend.shape().pages * PAGE_TOKENS).collect();
        let (k, v) = (T::elements(&self.k), T::elements(&self.v));
        backend.append(layer, &targets, Counters::default(), k, v).unwrap();
    }

    /// Appends K and V of one token of a page and KV head, `[head_dim]` each, to `k` and `v`.
    pub(crate) fn read(
        &self,
        (page, token): (u32, u32),
        kv_head: u32,
        k: &mut Vec<f64>,
        v: &mut Vec<f64>,
    ) {
        let dims = self.heads.head_dim as usize;
        let place = (page * PAGE_TOKENS + token) as usize;
        let at = place * self.row() + kv_head as usize * dims;
        for (rows, values) in [(&self.k, k), (&self.v, v)] {
            values.extend(rows[at..at + dims].iter().map(|x| f64::from(x.to_f32())));
        }
    }
}

/// Two numbers that are close to normal with mean 0 and deviation 1: sums of four bytes each.
pub fn normal(word: u64) -> [f32; 2] {
    // Four uniform bytes have mean 510 and variance 4 (256^2 - 1) / 12.
    [word as u32, (word >> 32) as u32].map(|half| {
        let sum: u32 = half.to_le_bytes().into_iter().map(u32::from).sum();
        (sum as f32 - 510.0) / 147.8
    })
}

/// `count` elements whose bits are all ones, a NaN that no kernel writes: outputs before a run.
pub fn unwritten<T: Pod>(count: usize) -> Vec<T> {
    let mut elements = vec![T::zeroed(); count];
    bytemuck::cast_slice_mut::<T, u8>(&mut elements).fill(u8::MAX);
    elements
}

/// `count` values close to normal with deviation `scale`.
pub fn normals<T: KvElement>(seed: u64, count: usize, scale: f32) -> Vec<T> {
    let values = (0..count as u64).map(|at| normal(word(seed, at))[0] * scale);
    values.map(T::from_f32).collect()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn values_are_close_to_normal() {
        let values: Vec<f64> =
            (0..50_000).flat_map(|at| normal(word(3, at))).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn every_token_is_filled_and_every_other_place_is_nan() {
        let heads = HeadShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
        let params = AttentionParams::new(64);
        let inputs = Inputs::<bf16>::random(heads, params, &[64, 6, 0], 1, 1);
        for rows in [&inputs.k, &inputs.v] {
            let row = rows.chunks_exact(128);
            let filled = row.map(|row| row.iter().filter(|x| x.is_finite()).count());
            let expected = (0..192).map(|place| 128 * usize::from(place < 70));
            assert!(filled.eq(expected));
        }
        let (mut k, mut v) = (Vec::new(), Vec::new());
        inputs.read((1, 5), 1, &mut k, &mut v);
        let at = 69 * 128 + 64;
        let exact = |rows: &[bf16]| rows[at..at + 64].iter().map(|x| x.to_f64()).collect();
        assert_eq!((k, v), (exact(&inputs.k), exact(&inputs.v)));
    }
}
