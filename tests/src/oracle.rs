//! What attention gives in f64, and how far results may be from it.

use std::collections::BTreeMap;
use std::fmt;

use bytemuck::Pod;
use deft::attention::AttentionParams;
use deft::cache::{DType, KvElement};
use deft::plan::HeadShape;
use deft::tree::TreeView;
use rayon::prelude::*;

use crate::inputs::Inputs;
use crate::reference::attention::{ReferenceOutput, ReferenceParams, attend_row, visible_tokens};

/// How far results may be from f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Relative L2 distance of a row of outputs.
    pub out: f64,
    /// Distance of an LSE; for `f32`, relative to an LSE above 1.
    pub lse: f64,
}

impl Tolerance {
    /// Of results stored as `dtype`.
    pub const fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self {
                out: 1e-5,
                lse: 1e-5,
            },
            _ => Self {
                out: 5e-3,
                lse: 1e-3,
            },
        }
    }
}

/// `count` elements whose bits are all ones, a NaN that no kernel writes: outputs before a run.
pub fn unwritten<T: Pod>(count: usize) -> Vec<T> {
    let mut elements = vec![T::zeroed(); count];
    bytemuck::cast_slice_mut::<T, u8>(&mut elements).fill(u8::MAX);
    elements
}

fn is_unwritten<T: Pod>(element: &T) -> bool {
    bytemuck::bytes_of(element)
        .iter()
        .all(|&byte| byte == u8::MAX)
}

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
        Self {
            out: unwritten(rows * head_dim as usize),
            lse: unwritten(rows),
        }
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

/// How far results are from right.
#[derive(Clone, Debug)]
pub struct Verdict {
    tolerance: Tolerance,
    /// Outputs (row and head) compared.
    pub rows: usize,
    /// Largest relative L2 distance of an output.
    pub max_rel_l2: f64,
    /// Largest distance of an LSE.
    pub max_lse_error: f64,
    /// Outputs that still hold what was there before the run.
    unwritten: usize,
    /// Outputs with a NaN or an infinity that was computed.
    not_finite: usize,
    /// `(row, head)` of what is right as NaN or infinity.
    spoilt: Vec<(u32, u32)>,
    /// `(row, head)` of what is out of tolerance.
    bad: Vec<(u32, u32)>,
    /// Where the worst one differs most: row, head, dim, got, expected.
    worst: Option<(u32, u32, usize, f64, f64)>,
}

/// `count` of `0..queries`, first and last among them, evenly spread.
pub fn sample(queries: u32, count: u32) -> Vec<u32> {
    if count >= queries {
        return (0..queries).collect();
    }
    let last = u64::from(queries - 1);
    let steps = u64::from(count.max(2) - 1);
    (0..=steps)
        .map(|step| (step * last / steps) as u32)
        .collect()
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
            let mut right = Right {
                row,
                kv_head,
                out: Vec::new(),
                lse: Vec::new(),
            };
            for q in q[first * dims..][..group * dims].chunks_exact(dims) {
                let q: Vec<f64> = q.iter().map(|value| value.to_f32().into()).collect();
                let (out, lse) = attend_row(&params, &q, &seen);
                right.out.extend(out);
                right.lse.push(lse);
            }
            right
        });
        Self {
            heads,
            rows: rows.collect(),
        }
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

/// Asserts that `out` and `lse`, all rows of them, are within tolerance of `expected`.
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
    let mut verdict = Verdict::new(T::DTYPE);
    assert_eq!(out.len(), expected.out.len(), "{context}");
    assert_eq!(lse.len(), expected.lse.len(), "{context}");
    let rows = out.chunks_exact(head_dim);
    for (row, (got, expected)) in (0..).zip(rows.zip(expected.out.chunks_exact(head_dim))) {
        verdict.add_row((row, 0), got, expected);
    }
    for (row, (&got, &expected)) in (0..).zip(lse.iter().zip(&expected.lse)) {
        verdict.add_lse((row, 0), got.into(), expected);
    }
    assert!(verdict.passes(), "{context}: {verdict}");
}

/// Length of the difference over the length of what is right; infinite where anything is not finite.
pub fn relative_l2<T: KvElement>(got: &[T], right: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = got.iter().zip(right);
    let error: f64 = pairs
        .map(|(got, right)| square(f64::from(got.to_f32()) - right))
        .sum();
    let norm: f64 = right.iter().copied().map(square).sum();
    match (error, norm) {
        (0.0, _) => 0.0,
        (error, norm) if error.is_finite() && norm > 0.0 => (error / norm).sqrt(),
        _ => f64::INFINITY,
    }
}

impl Verdict {
    fn new(dtype: DType) -> Self {
        Self {
            tolerance: Tolerance::of(dtype),
            rows: 0,
            max_rel_l2: 0.0,
            max_lse_error: 0.0,
            unwritten: 0,
            not_finite: 0,
            spoilt: Vec::new(),
            bad: Vec::new(),
            worst: None,
        }
    }

    /// Whether everything is within tolerance.
    pub fn passes(&self) -> bool {
        self.bad.is_empty()
    }

    /// What is right as NaN or infinity must be one of them; the other elements of such a row may be, and its LSE.
    fn add_row<T: KvElement>(&mut self, at: (u32, u32), got: &[T], expected: &[f64]) {
        self.rows += 1;
        let unwritten = got.iter().any(is_unwritten);
        if expected.iter().any(|expected| !expected.is_finite()) {
            self.spoilt.push(at);
            self.unwritten += usize::from(unwritten);
            let both = got.iter().zip(expected);
            let laundered =
                |(got, right): (&T, &f64)| got.to_f32().is_finite() && !right.is_finite();
            if unwritten || { both }.any(laundered) {
                self.bad.push(at);
            }
            return;
        }
        let finite = got.iter().all(|value| value.to_f32().is_finite());
        self.unwritten += usize::from(unwritten);
        self.not_finite += usize::from(!finite && !unwritten);
        let rel_l2 = relative_l2(got, expected);
        if rel_l2 > self.tolerance.out {
            self.bad.push(at);
        }
        if rel_l2 > self.max_rel_l2 || self.worst.is_none() {
            self.max_rel_l2 = self.max_rel_l2.max(rel_l2);
            let values = got.iter().map(|value| f64::from(value.to_f32()));
            let pairs = values.zip(expected).enumerate();
            // A NaN is farther than any number.
            let farthest = pairs.max_by(|(_, (a, right_a)), (_, (b, right_b))| {
                (a - *right_a).abs().total_cmp(&(b - *right_b).abs())
            });
            self.worst = farthest.map(|(dim, (got, &expected))| (at.0, at.1, dim, got, expected));
        }
    }

    fn add_lse(&mut self, at: (u32, u32), got: f64, expected: f64) {
        let spoilt = self.spoilt.contains(&at);
        let error = if got == expected || spoilt && got.is_nan() {
            0.0
        } else if got.is_nan() {
            f64::INFINITY
        } else {
            (got - expected).abs()
        };
        self.max_lse_error = self.max_lse_error.max(error);
        let relative_to = if self.tolerance == Tolerance::of(DType::F32) {
            expected.abs().max(1.0)
        } else {
            1.0
        };
        if error > self.tolerance.lse * relative_to && self.bad.last() != Some(&at) {
            self.bad.push(at);
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "max rel L2 {:.1e}, max LSE error {:.1e}, {} compared",
            self.max_rel_l2, self.max_lse_error, self.rows
        )?;
        if self.passes() {
            return Ok(());
        }
        let rows: Vec<u32> = self.bad.iter().map(|bad| bad.0).collect();
        let heads: Vec<u32> = self.bad.iter().map(|bad| bad.1).collect();
        write!(
            f,
            "; {} BAD (tolerances {:.0e}, {:.0e}): rows {}; heads {}; {} never written, {} not finite",
            self.bad.len(),
            self.tolerance.out,
            self.tolerance.lse,
            ranges(rows),
            ranges(heads),
            self.unwritten,
            self.not_finite
        )?;
        if let Some((row, head, dim, got, expected)) = self.worst {
            write!(
                f,
                "; worst: row {row} head {head} dim {dim} is {got:.5}, expected {expected:.5}"
            )?;
        }
        Ok(())
    }
}

/// `1-3, 7` of `[7, 1, 2, 3, 2]`.
fn ranges(mut numbers: Vec<u32>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let runs: Vec<&[u32]> = numbers.chunk_by(|a, b| a + 1 == *b).collect();
    let shown = runs.iter().take(12).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if runs.len() > 12 {
        text += ", ...";
    }
    text
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::problem::Problem;
    use crate::views;

    const HEADS: HeadShape = HeadShape {
        q_heads: 2,
        kv_heads: 1,
        head_dim: 64,
    };

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
        assert!(
            text.contains("1 BAD") && text.contains("rows 1; heads 1"),
            "{text}"
        );
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
    fn errors_are_relative_and_a_nan_is_no_small_one() {
        assert!((relative_l2(&[3.0_f32, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert_eq!(relative_l2(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_l2(&[1e-9_f32], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn a_sample_has_both_ends() {
        assert_eq!(sample(100, 4), [0, 33, 66, 99]);
        assert_eq!(sample(3, 8), [0, 1, 2]);
    }

    #[test]
    fn numbers_are_told_as_ranges() {
        assert_eq!(ranges(vec![7, 1, 2, 3, 2]), "1-3, 7");
    }
}
