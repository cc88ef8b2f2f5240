//! What attention gives in f64, and how far results are from it.

mod verdict;

pub use verdict::{Tolerance, Verdict, assert_close, relative_l2};

use std::collections::BTreeMap;

use bytemuck::Pod;
use deft::attention::AttentionParams;
use deft::cache::KvElement;
use deft::plan::HeadShape;
use deft::tree::TreeView;
use rayon::prelude::*;

use crate::inputs::{Inputs, unwritten};
use crate::reference::attention::{ReferenceParams, attend_row, visible_tokens};

/// What came out of a backend.
#[derive(Clone, Debug)]
pub struct Outputs<T> {
    /// `[queries, q_heads, head_dim]`, in the order of the caller's rows.
    pub out: Vec<T>,
    /// `[queries, q_heads]`; empty where nobody asked for it.
    pub lse: Vec<f32>,
}

impl<T: Pod> Outputs<T> {
    /// For `rows` rows of `head_dim` elements, unwritten.
    pub fn unwritten(rows: usize, head_dim: u32) -> Self {
        Self { out: unwritten(rows * head_dim as usize), lse: unwritten(rows) }
    }

    /// Whether both hold the same bits.
    pub fn same_bits(&self, other: &Self) -> bool {
        bytemuck::cast_slice::<T, u8>(&self.out) == bytemuck::cast_slice::<T, u8>(&other.out)
            && bytemuck::cast_slice::<f32, u8>(&self.lse)
                == bytemuck::cast_slice::<f32, u8>(&other.lse)
    }
}

/// The right results of some rows of queries.
#[derive(Debug)]
pub struct Oracle {
    heads: HeadShape,
    rows: Vec<Right>,
}

/// What a row's heads of one KV head should give.
#[derive(Debug)]
struct Right {
    row: u32,
    kv_head: u32,
    /// `[group, head_dim]`.
    out: Vec<f64>,
    /// `[group]`, natural logarithm; -inf for a query that sees no token.
    lse: Vec<f64>,
}

/// `count` of `0..queries`, first and last among them, evenly spread.
pub fn sample(queries: u32, count: u32) -> Vec<u32> {
    if count >= queries {
        return (0..queries).collect();
    }
    let last = u64::from(queries - 1);
    let steps = u64::from(count.max(2) - 1);
    (0..=steps).map(|step| (step * last / steps) as u32).collect()
}

impl Oracle {
    /// Attention of all heads of `queries` of `view` over `inputs`, each in its row.
    pub fn new<T: KvElement>(inputs: &Inputs<T>, view: &TreeView, queries: &[u32]) -> Self {
        let seen = queries.par_iter().map(|&query| {
            let row = view.query_order[query as usize];
            (row, visible_tokens(view, query))
        });
        let seen: BTreeMap<u32, Vec<(u32, u32)>> = seen.collect();
        let kv_heads = inputs.heads.kv_heads;
        let rows = seen.keys();
        let pairs = rows.flat_map(|&row| (0..kv_heads).map(move |kv_head| (row, kv_head)));
        let pairs: Vec<(u32, u32)> = pairs.collect();
        let (heads, params, q) = (inputs.heads, &inputs.params, &inputs.q);
        Self::of(heads, params, q, &pairs, |row, kv_head| {
            let (mut k, mut v) = (Vec::new(), Vec::new());
            for &token in &seen[&row] {
                inputs.read(token, kv_head, &mut k, &mut v);
            }
            (k, v)
        })
    }

    /// Attention of some rows and KV heads, `(row, kv_head)`; `seen` tells K and V, both
    /// `[tokens, head_dim]`, that such a pair sees.
    pub fn of<T: KvElement>(
        heads: HeadShape,
        params: &AttentionParams,
        q: &[T],
        pairs: &[(u32, u32)],
        seen: impl Fn(u32, u32) -> (Vec<f64>, Vec<f64>) + Sync,
    ) -> Self {
        let params = reference_params(heads, params);
        let rows = pairs.par_iter().map(|&(row, kv_head)| {
            let (k, v) = seen(row, kv_head);
            let (group, dims) = (heads.group_size() as usize, params.head_dim);
            let seen: Vec<_> = k.chunks_exact(dims).zip(v.chunks_exact(dims)).collect();
            let first = row as usize * params.q_heads + kv_head as usize * group;
            let mut right = Right { row, kv_head, out: Vec::new(), lse: Vec::new() };
            for q in q[first * dims..][..group * dims].chunks_exact(dims) {
                let q: Vec<f64> = q.iter().map(|value| value.to_f32().into()).collect();
                let (out, lse) = attend_row(&params, &q, &seen);
                right.out.extend(out);
                right.lse.push(lse);
            }
            right
        });
        Self { heads, rows: rows.collect() }
    }

    /// Compares `outputs` with what is right.
    pub fn judge<T: KvElement>(&self, outputs: &Outputs<T>) -> Verdict {
        let (dims, group) = (self.heads.head_dim as usize, self.heads.group_size());
        let mut verdict = Verdict::new(T::DTYPE);
        for right in &self.rows {
            let expected = right.out.chunks_exact(dims).zip(&right.lse);
            for (member, (expected, &lse)) in (0..group).zip(expected) {
                let head = right.kv_head * group + member;
                let row = (right.row * self.heads.q_heads + head) as usize;
                let at = (right.row, head);
                verdict.add_row(at, &outputs.out[row * dims..][..dims], expected);
                if let Some(&got) = outputs.lse.get(row) {
                    verdict.add_lse(at, got.into(), lse);
                }
            }
        }
        verdict
    }
}

impl Oracle {
    /// Elements of the right outputs that are NaN or infinite.
    pub fn not_finite(&self) -> usize {
        let outputs = self.rows.iter().flat_map(|right| &right.out);
        outputs.filter(|out| !out.is_finite()).count()
    }
}

/// The reference's parameters of a layer.
pub fn reference_params(heads: HeadShape, params: &AttentionParams) -> ReferenceParams {
    ReferenceParams {
        q_heads: heads.q_heads as usize,
        kv_heads: heads.kv_heads as usize,
        head_dim: heads.head_dim as usize,
        scale: params.scale.into(),
        soft_cap: params.soft_cap.map(f64::from),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::problem::Problem;
    use crate::views;

    const HEADS: HeadShape = HeadShape { q_heads: 2, kv_heads: 1, head_dim: 64 };

    /// Three queries over ten tokens, and what is right.
    fn problem() -> (Oracle, Outputs<f16>) {
        let view = views::star(10, 3, 0);
        let problem = Problem::<f16>::new(view, HEADS, AttentionParams::new(64), 1);
        let oracle = Oracle::new(&problem.inputs, &problem.view, &[0, 1, 2]);
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for right in &oracle.rows {
            out.extend(right.out.iter().map(|&o| f16::from_f64(o)));
            lse.extend(right.lse.iter().map(|&l| l as f32));
        }
        (oracle, Outputs { out, lse })
    }

    #[test]
    fn right_results_pass() {
        let (oracle, outputs) = problem();
        let verdict = oracle.judge(&outputs);
        assert!(verdict.passes(), "{verdict}");
        assert_eq!(verdict.rows, 6);
        assert!(verdict.max_rel_l2 > 0.0);
    }

    #[test]
    fn a_wrong_output_is_named_with_its_row_and_head() {
        let (oracle, mut outputs) = problem();
        outputs.out[3 * 64 + 7] = f16::from_f32(5.0);
        let text = oracle.judge(&outputs).to_string();
        assert!(text.contains("1 BAD") && text.contains("rows 1; heads 1"), "{text}");
        assert!(text.contains("row 1 head 1 dim 7 is 5.00000"), "{text}");
    }

    #[test]
    fn a_row_that_was_never_written_is_counted_as_such() {
        let (oracle, mut outputs) = problem();
        outputs.out[..64].copy_from_slice(&unwritten(64));
        let verdict = oracle.judge(&outputs);
        assert!(!verdict.passes());
        assert_eq!((verdict.unwritten, verdict.not_finite), (1, 0));
    }

    #[test]
    fn a_wrong_lse_fails_though_the_output_is_right() {
        let (oracle, mut outputs) = problem();
        outputs.lse[4] += 0.1;
        assert!(!oracle.judge(&outputs).passes());
        outputs.lse[4] = f32::NAN;
        assert!(!oracle.judge(&outputs).passes());
    }

    #[test]
    fn a_sample_has_both_ends() {
        assert_eq!(sample(100, 4), [0, 33, 66, 99]);
        assert_eq!(sample(3, 8), [0, 1, 2]);
    }
}
