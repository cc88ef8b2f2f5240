//! How far results may be from f64, and how far they are.

use std::fmt;

use bytemuck::Pod;
use deft::cache::{DType, KvElement};

use crate::reference::attention::ReferenceOutput;

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
            DType::F32 => Self { out: 1e-5, lse: 1e-5 },
            _ => Self { out: 5e-3, lse: 1e-3 },
        }
    }
}

/// Whether an element is as [`crate::inputs::unwritten`] left it.
fn is_unwritten<T: Pod>(element: &T) -> bool {
    bytemuck::bytes_of(element).iter().all(|&byte| byte == u8::MAX)
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
    pub(super) unwritten: usize,
    /// Outputs with a NaN or an infinity that was computed.
    pub(super) not_finite: usize,
    /// `(row, head)` of what is right as NaN or infinity.
    spoilt: Vec<(u32, u32)>,
    /// `(row, head)` of what is out of tolerance.
    bad: Vec<(u32, u32)>,
    /// Where the worst one differs most: row, head, dim, got, expected.
    worst: Option<(u32, u32, usize, f64, f64)>,
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
    let error: f64 = pairs.map(|(got, right)| square(f64::from(got.to_f32()) - right)).sum();
    let norm: f64 = right.iter().copied().map(square).sum();
    match (error, norm) {
        (0.0, _) => 0.0,
        (error, norm) if error.is_finite() && norm > 0.0 => (error / norm).sqrt(),
        _ => f64::INFINITY,
    }
}

impl Verdict {
    pub(super) fn new(dtype: DType) -> Self {
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
    pub(super) fn add_row<T: KvElement>(&mut self, at: (u32, u32), got: &[T], expected: &[f64]) {
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

    pub(super) fn add_lse(&mut self, at: (u32, u32), got: f64, expected: f64) {
        let spoilt = self.spoilt.contains(&at);
        let error = if got == expected || spoilt && got.is_nan() {
            0.0
        } else if got.is_nan() {
            f64::INFINITY
        } else {
            (got - expected).abs()
        };
        self.max_lse_error = self.max_lse_error.max(error);
        let relative_to =
            if self.tolerance == Tolerance::of(DType::F32) { expected.abs().max(1.0) } else { 1.0 };
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
    use super::*;

    #[test]
    fn errors_are_relative_and_a_nan_is_no_small_one() {
        assert!((relative_l2(&[3.0_f32, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert_eq!(relative_l2(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_l2(&[1e-9_f32], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn numbers_are_told_as_ranges() {
        assert_eq!(ranges(vec![7, 1, 2, 3, 2]), "1-3, 7");
    }
}
