//! Results against the reference, and a useful word where they differ.

use std::collections::HashMap;
use std::fmt;

use deft::tree::TreeView;
use deft_tests::reference::attention::{ReferenceParams, attend_row, visible_tokens};
use rayon::prelude::*;

use crate::tensors::{Heads, HostPool, decode};

/// Relative L2 distance that a row of 16-bit outputs may have from f64.
pub(crate) const OUT_TOLERANCE: f64 = 5e-3;
/// Distance that an LSE may have.
pub(crate) const LSE_TOLERANCE: f64 = 1e-3;
/// What outputs are filled with before a run: no kernel writes these bits, a NaN.
pub(crate) const UNWRITTEN: u16 = 0xffff;

/// What came out of a backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outputs {
    /// `[queries, q_heads, head_dim]`.
    pub(crate) out: Vec<u16>,
    /// `[queries, q_heads]`.
    pub(crate) lse: Vec<f32>,
}

/// The right results of some queries.
#[derive(Debug)]
pub(crate) struct Oracle {
    heads: Heads,
    rows: Vec<Right>,
}

/// What one query's heads of one KV head should give.
#[derive(Debug)]
struct Right {
    query: u32,
    kv_head: u32,
    /// `[group, head_dim]`.
    out: Vec<f64>,
    /// `[group]`, natural logarithm; -inf for a query that sees no token.
    lse: Vec<f64>,
}

/// How far results are from right.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// Rows (query and head) compared.
    pub(crate) rows: usize,
    /// Largest relative L2 distance of a row.
    pub(crate) max_rel_l2: f64,
    /// Largest distance of an LSE.
    pub(crate) max_lse_error: f64,
    /// Rows that still hold the poison.
    unwritten: usize,
    /// Rows with a NaN or an infinity that was computed.
    not_finite: usize,
    /// `(query, head)` of rows out of tolerance.
    bad: Vec<(u32, u32)>,
    /// Where the worst row differs most: query, head, dim, got, expected.
    worst: Option<(u32, u32, usize, f64, f64)>,
}

/// `count` of `0..queries`, first and last among them, evenly spread.
pub(crate) fn sample(queries: u32, count: u32) -> Vec<u32> {
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
    /// Computes attention of all heads of `queries` in f64.
    pub(crate) fn new(pool: &HostPool, view: &TreeView, q: &[u16], queries: &[u32]) -> Self {
        let seen: HashMap<u32, Vec<(u32, u32)>> = queries
            .par_iter()
            .map(|&query| (query, visible_tokens(view, query)))
            .collect();
        let kv_heads = 0..pool.heads.kv_heads;
        let all = queries.iter().flat_map(|&query| {
            let kv_heads = kv_heads.clone();
            kv_heads.map(move |kv_head| (query, kv_head))
        });
        let all: Vec<(u32, u32)> = all.collect();
        Self::of(pool.heads, q, &all, |query, kv_head| {
            let (mut k, mut v) = (Vec::new(), Vec::new());
            for &token in &seen[&query] {
                pool.read_token(token, kv_head, &mut k, &mut v);
            }
            (k, v)
        })
    }

    /// Computes attention of some queries and KV heads, `(query, kv_head)`; `seen` tells K and V, both
    /// `[tokens, head_dim]`, that such a pair sees.
    pub(crate) fn of(
        heads: Heads,
        q: &[u16],
        pairs: &[(u32, u32)],
        seen: impl Fn(u32, u32) -> (Vec<f64>, Vec<f64>) + Sync,
    ) -> Self {
        let rows = pairs.par_iter().map(|&(query, kv_head)| {
            let (k, v) = seen(query, kv_head);
            Right::new(&heads, q, query, kv_head, &k, &v)
        });
        Self {
            heads,
            rows: rows.collect(),
        }
    }

    /// Compares `outputs` with what is right.
    pub(crate) fn judge(&self, outputs: &Outputs) -> Verdict {
        let heads = &self.heads;
        let dims = heads.head_dim as usize;
        let mut verdict = Verdict::default();
        for right in &self.rows {
            for member in 0..heads.group {
                let head = right.kv_head * heads.group + member;
                let at = (right.query, head);
                let row = (right.query * heads.q_heads() + head) as usize;
                let got = &outputs.out[row * dims..][..dims];
                let expected = &right.out[member as usize * dims..][..dims];
                let lse = f64::from(outputs.lse[row]);
                verdict.add_row(heads, at, got, expected);
                verdict.add_lse(at, lse, right.lse[member as usize]);
            }
        }
        verdict
    }
}

impl Right {
    fn new(heads: &Heads, q: &[u16], query: u32, kv_head: u32, k: &[f64], v: &[f64]) -> Self {
        let (group, dims) = (heads.group as usize, heads.head_dim as usize);
        let params = ReferenceParams {
            q_heads: heads.q_heads() as usize,
            kv_heads: heads.kv_heads as usize,
            head_dim: dims,
            scale: f64::from(heads.params.scale),
            soft_cap: heads.params.soft_cap.map(f64::from),
        };
        let seen: Vec<_> = k.chunks_exact(dims).zip(v.chunks_exact(dims)).collect();
        let begin = query as usize * heads.query_elements() + kv_head as usize * group * dims;
        let mut right = Self {
            query,
            kv_head,
            out: Vec::new(),
            lse: Vec::new(),
        };
        for row in q[begin..begin + group * dims].chunks_exact(dims) {
            let row: Vec<f64> = row
                .iter()
                .map(|&bits| f64::from(decode(heads.dtype, bits)))
                .collect();
            let (out, lse) = attend_row(&params, &row, &seen);
            right.out.extend(out);
            right.lse.push(lse);
        }
        right
    }
}

impl Verdict {
    /// Whether everything is within tolerance.
    pub(crate) fn passes(&self) -> bool {
        self.bad.is_empty()
    }

    fn add_row(&mut self, heads: &Heads, at: (u32, u32), got: &[u16], expected: &[f64]) {
        self.rows += 1;
        self.unwritten += usize::from(got.contains(&UNWRITTEN));
        let values = got.iter().map(|&bits| f64::from(decode(heads.dtype, bits)));
        let (mut error, mut norm) = (0.0, 0.0);
        let mut farthest = (0, 0.0, 0.0, -1.0);
        let mut finite = true;
        for (dim, (got, &expected)) in values.zip(expected).enumerate() {
            let distance = (got - expected).abs();
            error += distance * distance;
            norm += expected * expected;
            finite &= got.is_finite();
            if distance > farthest.3 || (distance.is_nan() && !f64::is_nan(farthest.3)) {
                farthest = (dim, got, expected, distance);
            }
        }
        let rel_l2 = match (error, norm) {
            (0.0, _) => 0.0,
            _ if !finite => f64::INFINITY,
            (_, 0.0) => f64::INFINITY,
            _ => (error / norm).sqrt(),
        };
        self.not_finite += usize::from(!finite && !got.contains(&UNWRITTEN));
        if rel_l2 > OUT_TOLERANCE {
            self.bad.push(at);
        }
        if rel_l2 > self.max_rel_l2 || self.worst.is_none() {
            self.max_rel_l2 = self.max_rel_l2.max(rel_l2);
            let (dim, got, expected, _) = farthest;
            self.worst = Some((at.0, at.1, dim, got, expected));
        }
    }

    fn add_lse(&mut self, at: (u32, u32), got: f64, expected: f64) {
        let error = if got == expected {
            0.0
        } else if got.is_nan() {
            f64::INFINITY
        } else {
            (got - expected).abs()
        };
        self.max_lse_error = self.max_lse_error.max(error);
        if error > LSE_TOLERANCE && self.bad.last() != Some(&at) {
            self.bad.push(at);
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "max rel L2 {:.1e}, max LSE error {:.1e}, {} rows",
            self.max_rel_l2, self.max_lse_error, self.rows
        )?;
        if self.passes() {
            return Ok(());
        }
        let queries: Vec<u32> = self.bad.iter().map(|bad| bad.0).collect();
        let heads: Vec<u32> = self.bad.iter().map(|bad| bad.1).collect();
        write!(
            f,
            "; {} BAD (tolerances {OUT_TOLERANCE:.0e}, {LSE_TOLERANCE:.0e}): queries {}; heads {}; \
             {} never written, {} not finite",
            self.bad.len(),
            ranges(queries),
            ranges(heads),
            self.unwritten,
            self.not_finite
        )?;
        if let Some((query, head, dim, got, expected)) = self.worst {
            write!(
                f,
                "; worst: query {query} head {head} dim {dim} is {got:.5}, expected {expected:.5}"
            )?;
        }
        Ok(())
    }
}

/// `1-3, 7` of `[7, 1, 2, 3, 2]`.
fn ranges(mut numbers: Vec<u32>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let shown = runs.iter().take(12).map(|&(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if runs.len() > 12 {
        text += ", ...";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::tensors::{encode, random_queries};
    use deft::attention::AttentionParams;
    use deft::cache::DType;
    use deft::tree::Run;

    fn problem() -> (Oracle, Outputs) {
        let heads = Heads {
            dtype: DType::F16,
            kv_heads: 1,
            group: 2,
            head_dim: 64,
            params: AttentionParams::new(64),
        };
        let view = TreeView {
            runs: vec![Run {
                parent: None,
                queries: 0..3,
                tokens: 10,
                pages: 0..1,
                length_slot: None,
                mask: None,
                causal: 0,
            }],
            pages: vec![0],
            queries: 3,
            ..TreeView::default()
        };
        let pool = HostPool::random(heads, 1, &view, Random::new(1));
        let q = random_queries(&heads, 3, Random::new(2));
        let oracle = Oracle::new(&pool, &view, &q, &[0, 1, 2]);
        let mut out = Vec::new();
        let mut lse = Vec::new();
        for right in &oracle.rows {
            out.extend(right.out.iter().map(|&o| encode(DType::F16, o as f32)));
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
    fn a_wrong_row_is_named_with_its_query_and_head() {
        let (oracle, mut outputs) = problem();
        outputs.out[3 * 64 + 7] = encode(DType::F16, 5.0);
        let text = oracle.judge(&outputs).to_string();
        assert!(
            text.contains("1 BAD") && text.contains("queries 1; heads 1"),
            "{text}"
        );
        assert!(text.contains("query 1 head 1 dim 7 is 5.00000"), "{text}");
    }

    #[test]
    fn a_row_that_was_never_written_is_counted_as_such() {
        let (oracle, mut outputs) = problem();
        outputs.out[0..64].fill(UNWRITTEN);
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

    #[test]
    fn numbers_are_told_as_ranges() {
        assert_eq!(ranges(vec![7, 1, 2, 3, 2]), "1-3, 7");
    }
}
