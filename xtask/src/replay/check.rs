//! A row of the output against its definition.

use deft::{DType, KvElement};

/// What a row of the output has to be.
pub(crate) struct Expected {
    pub(crate) query: usize,
    pub(crate) head: usize,
    /// `[head_dim]`.
    pub(crate) out: Vec<f64>,
    pub(crate) lse: f64,
}

impl Expected {
    /// How far `out`, `[queries, q_heads, head_dim]`, and `lse`, `[queries, q_heads]`, are off: the row's
    /// relative L2 error, and that of its LSE relative to the larger of it and 1. Infinite for a NaN.
    pub(crate) fn errors<T: KvElement>(
        &self,
        q_heads: usize,
        out: &[T],
        lse: &[f32],
    ) -> (f64, f64) {
        let row = self.query * q_heads + self.head;
        let dim = self.out.len();
        let square = |x: f64| x * x;
        let norm: f64 = self.out.iter().copied().map(square).sum();
        let got = out[row * dim..][..dim]
            .iter()
            .map(|x| f64::from(x.to_f32()));
        let error: f64 = got.zip(&self.out).map(|(got, out)| square(got - out)).sum();
        let lse = f64::from(lse[row]);
        let lse_error = if lse == self.lse {
            0.0
        } else {
            (lse - self.lse).abs() / self.lse.abs().max(1.0)
        };
        let number = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
        (number((error / norm.max(1e-30)).sqrt()), number(lse_error))
    }
}

/// Most relative L2 error of an output row, and most error of an LSE.
pub(crate) fn tolerances(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F32 => (1e-5, 1e-5),
        _ => (5e-3, 1e-3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(query: usize) -> Expected {
        Expected {
            query,
            head: 1,
            out: vec![3.0, 4.0],
            lse: 2.0,
        }
    }

    #[test]
    fn a_row_is_found_and_its_error_is_relative() {
        let out = [0.0f32, 0.0, 3.0, 4.0, 0.0, 0.0, 3.0, 4.5];
        let lse = [9.0, 2.0, 9.0, 2.5];
        assert_eq!(row(0).errors(2, &out, &lse), (0.0, 0.0));
        assert_eq!(row(1).errors(2, &out, &lse), (0.1, 0.25));
    }

    #[test]
    fn what_was_never_written_is_infinitely_wrong() {
        let (output, lse) = row(0).errors(2, &[f32::NAN; 4], &[f32::NAN; 2]);
        assert_eq!((output, lse), (f64::INFINITY, f64::INFINITY));
    }

    #[test]
    fn a_query_that_sees_nothing_is_right_with_an_infinite_lse() {
        let nothing = Expected {
            out: vec![0.0; 2],
            lse: f64::NEG_INFINITY,
            ..row(0)
        };
        let lse = [f32::NEG_INFINITY; 2];
        assert_eq!(nothing.errors(2, &[0.0f32; 4], &lse), (0.0, 0.0));
    }
}
