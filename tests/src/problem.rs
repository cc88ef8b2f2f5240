//! Attention problems with a known answer: K, V and queries for any view, and the comparison.

use deft::attention::{Attend, AttentionParams, Backend, Counters};
use deft::cache::{CacheShape, KvElement};
use deft::plan::Plan;
use deft::tree::TreeView;
use kernels_gpu::abi::PAGE_TOKENS;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::reference::attention::{self, ReferenceOutput, ReferenceParams};

/// Heads of a model's layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub q: u32,
    /// KV heads.
    pub kv: u32,
    /// Elements of a head.
    pub dim: u32,
}

/// K, V and queries for a view, rounded to `T`, and what attention over them gives.
#[derive(Debug)]
pub struct Problem<T> {
    /// Who sees what.
    pub view: TreeView,
    /// The layer's heads.
    pub heads: Heads,
    /// Numbers of the model.
    pub params: AttentionParams,
    /// `[queries, q_heads, head_dim]`, in the order of [`TreeView::query_order`]'s rows.
    pub q: Vec<T>,
    /// `[pages * 64, kv_heads, head_dim]`; NaN where no run has a token.
    pub k: Vec<T>,
    /// As `k`.
    pub v: Vec<T>,
    /// Lengths by slot.
    pub lengths: Vec<u32>,
    /// The answer in f64.
    pub expected: ReferenceOutput,
}

impl<T: KvElement> Problem<T> {
    /// Random values for `view`.
    pub fn new(view: TreeView, heads: Heads, params: AttentionParams, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let pages = view.pages.iter().max().map_or(1, |page| page + 1);
        let row = (heads.kv * heads.dim) as usize;
        let mut cache = [(); 2].map(|()| {
            let elements = (pages * PAGE_TOKENS) as usize * row;
            vec![T::from_f32(f32::NAN); elements]
        });
        let mut lengths = Vec::new();
        for run in &view.runs {
            for token in 0..run.tokens {
                let page = view.pages[(run.pages.start + token / PAGE_TOKENS) as usize];
                let place = (page * PAGE_TOKENS + token % PAGE_TOKENS) as usize;
                for cache in &mut cache {
                    fill(&mut rng, &mut cache[place * row..(place + 1) * row]);
                }
            }
            if let Some(slot) = run.length_slot {
                lengths.resize(lengths.len().max(slot as usize + 1), 0);
                lengths[slot as usize] = run.tokens;
            }
        }
        let mut q = vec![T::default(); (view.queries * heads.q * heads.dim) as usize];
        fill(&mut rng, &mut q);
        // A few steep rows, where one token outweighs all others.
        let rows = q.chunks_exact_mut(heads.dim as usize).step_by(7);
        for value in rows.flatten() {
            *value = T::from_f32(value.to_f32() * 8.0);
        }
        let [k, v] = cache;
        let expected = expected(&view, heads, params, &q, [&k, &v]);
        Self {
            view,
            heads,
            params,
            q,
            k,
            v,
            lengths,
            expected,
        }
    }

    /// Finds the answer again, after `q`, `k` or `v` have changed.
    pub fn recompute(&mut self) {
        let kv = [&self.k[..], &self.v[..]];
        self.expected = expected(&self.view, self.heads, self.params, &self.q, kv);
    }

    /// The shape of a cache of `layers` that has the problem's pages.
    pub fn shape(&self, layers: u32) -> CacheShape {
        let tokens = self.k.len() / (self.heads.kv * self.heads.dim) as usize;
        CacheShape {
            layers,
            kv_heads: self.heads.kv,
            head_dim: self.heads.dim,
            dtype: T::DTYPE,
            pages: tokens as u32 / PAGE_TOKENS,
        }
    }

    /// Writes K and V, the NaNs included, to a layer of `backend`.
    ///
    /// # Panics
    /// If it refuses.
    pub fn store(&self, backend: &mut dyn Backend, layer: u32) {
        let targets: Vec<u32> = (0..backend.shape().pages * PAGE_TOKENS).collect();
        let (k, v) = (T::elements(&self.k), T::elements(&self.v));
        backend
            .append(layer, &targets, Counters::default(), k, v)
            .unwrap();
    }

    /// Runs `plan` on `backend` into poisoned memory and compares with the answer.
    ///
    /// # Panics
    /// If it refuses, or gives something else.
    pub fn check(&self, backend: &mut dyn Backend, layer: u32, plan: &Plan, context: &str) {
        let mut out = vec![T::from_f32(f32::NAN); self.q.len()];
        let mut lse = vec![f32::NAN; self.expected.lse.len()];
        let call = Attend {
            layer,
            plan,
            counters: Counters {
                lengths: &self.lengths,
                tail_pages: &[],
            },
            q: T::elements(&self.q),
            out: T::elements_mut(&mut out),
            lse: Some(f32::elements_mut(&mut lse)),
            params: self.params,
        };
        backend.attend(call).unwrap();
        assert_close(&out, &lse, &self.expected, self.heads.dim as usize, context);
    }
}

/// Asserts that every row of `out` is within the tolerance of its type (relative L2 of 5e-3 for the
/// 16-bit types, 1e-5 for f32), and `lse` within 1e-3 (1e-5). What the answer has as NaN or infinity must be one of
/// them; the other elements of such a row, and its LSE, may be.
///
/// # Panics
/// If not.
pub fn assert_close<T: KvElement>(
    out: &[T],
    lse: &[f32],
    expected: &ReferenceOutput,
    head_dim: usize,
    context: &str,
) {
    let (out_tolerance, lse_tolerance) = match T::DTYPE.bytes() {
        2 => (5e-3, 1e-3),
        _ => (1e-5, 1e-5),
    };
    let rows = out
        .chunks_exact(head_dim)
        .zip(expected.out.chunks_exact(head_dim));
    assert_eq!(rows.len(), expected.lse.len());
    let mut spoilt = vec![false; lse.len()];
    for (row, (out, expected)) in rows.enumerate() {
        spoilt[row] = expected.iter().any(|expected| !expected.is_finite());
        if spoilt[row] {
            let both = out.iter().zip(expected);
            let laundered =
                both.filter(|(out, expected)| out.to_f32().is_finite() && !expected.is_finite());
            assert_eq!(
                laundered.count(),
                0,
                "{context}: elements of row {row} are finite"
            );
            continue;
        }
        let square = |x: f64| x * x;
        let norm: f64 = expected.iter().copied().map(square).sum();
        let error = out.iter().zip(expected);
        let error: f64 = error.map(|(a, b)| square(f64::from(a.to_f32()) - b)).sum();
        let relative = (error / norm.max(1e-30)).sqrt();
        assert!(
            relative <= out_tolerance,
            "{context}: row {row} is off by {relative:.2e} (L2, relative)"
        );
    }
    for (row, (&lse, &expected)) in lse.iter().zip(&expected.lse).enumerate() {
        let lse = f64::from(lse);
        let error = (lse - expected).abs() / expected.abs().max(1.0);
        assert!(
            lse == expected || error <= lse_tolerance || spoilt[row] && lse.is_nan(),
            "{context}: LSE of row {row} is {lse}, not {expected}"
        );
    }
}

fn expected<T: KvElement>(
    view: &TreeView,
    heads: Heads,
    params: AttentionParams,
    q: &[T],
    kv: [&[T]; 2],
) -> ReferenceOutput {
    let exact =
        |values: &[T]| -> Vec<f64> { values.iter().map(|value| value.to_f32().into()).collect() };
    let (q, k, v) = (exact(q), exact(kv[0]), exact(kv[1]));
    let dim = heads.dim as usize;
    let params = ReferenceParams {
        q_heads: heads.q as usize,
        kv_heads: heads.kv as usize,
        head_dim: dim,
        scale: params.scale.into(),
        soft_cap: params.soft_cap.map(f64::from),
    };
    let order = &view.query_order;
    let width = params.q_heads * dim;
    let by_query = order
        .iter()
        .flat_map(|&row| &q[row as usize * width..][..width]);
    let by_query: Vec<f64> = by_query.copied().collect();
    let answer = attention::attend(view, &params, &by_query, |page, token, head| {
        let place = (page * PAGE_TOKENS + token) as usize;
        let at = (place * params.kv_heads + head) * dim;
        (&k[at..at + dim], &v[at..at + dim])
    });
    ReferenceOutput {
        out: by_row(order, width, &answer.out),
        lse: by_row(order, params.q_heads, &answer.lse),
    }
}

/// `values`, `width` a query, in the order of the rows.
fn by_row(order: &[u32], width: usize, values: &[f64]) -> Vec<f64> {
    let mut rows = vec![0.0; values.len()];
    for (&row, values) in order.iter().zip(values.chunks_exact(width)) {
        rows[row as usize * width..][..width].copy_from_slice(values);
    }
    rows
}

fn fill<T: KvElement>(rng: &mut SmallRng, values: &mut [T]) {
    for value in values {
        *value = T::from_f32(rng.random_range(-1.5..1.5));
    }
}
