//! Products of matrices, by the `gemm` crate.

use gemm::{Parallelism, gemm};

/// A matrix of weights, `[rows, columns]`.
#[derive(Debug)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// What becomes of the values that a product is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Onto {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

impl Matrix {
    pub(super) fn new([rows, columns]: [usize; 2], values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * columns, "values are [rows, columns]");
        Self {
            rows,
            columns,
            values,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// One row, `[columns]`.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// `y[n] = W x[n]` for all `n`: `x` is `[n, columns]`, `y` is `[n, rows]`.
    ///
    /// # Panics
    /// If `x` and `y` are of other sizes.
    pub(super) fn apply(&self, x: &[f32], y: &mut [f32], onto: Onto) {
        let n = y.len() / self.rows;
        assert_eq!(y.len(), n * self.rows, "y is [n, rows]");
        assert_eq!(x.len(), n * self.columns, "x is [n, columns]");
        let (rows, columns) = (self.rows as isize, self.columns as isize);
        // SAFETY: with the strides given, element (i, j) of the three matrices is
        // 1. `y[j * rows + i]` with i < rows and j < n,
        // 2. `values[i * columns + j]` with i < rows and j < columns,
        // 3. `x[j * columns + i]` with i < columns and j < n,
        // all within their slices by the checks above and in `new`; `y` is borrowed mutably, so it
        // overlaps neither of the others, and it is initialized.
        unsafe {
            gemm(
                self.rows,
                n,
                self.columns,
                y.as_mut_ptr(),
                rows,
                1,
                onto == Onto::Add,
                self.values.as_ptr(),
                1,
                columns,
                x.as_ptr(),
                columns,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for [n, rows, columns] in [
            [1, 1, 1],
            [1, 37, 19],
            [3, 64, 65],
            [17, 129, 200],
            [64, 8, 3],
        ] {
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
            let matrix = Matrix::new([rows, columns], (0..rows * columns).map(value).collect());
            let x: Vec<f32> = (0..n * columns).map(|i| value(i + 5)).collect();
            let mut replaced = vec![f32::NAN; n * rows];
            matrix.apply(&x, &mut replaced, Onto::Replace);
            let mut added = vec![1.0; n * rows];
            matrix.apply(&x, &mut added, Onto::Add);
            for (at, (replaced, added)) in replaced.into_iter().zip(added).enumerate() {
                let (weights, x) = (matrix.row(at % rows), &x[at / rows * columns..]);
                let products = weights
                    .iter()
                    .zip(x)
                    .map(|(&w, &x)| f64::from(w) * f64::from(x));
                let expected: f64 = products.sum();
                assert!((f64::from(replaced) - expected).abs() < 1e-3);
                assert!((f64::from(added) - expected - 1.0).abs() < 1e-3);
            }
        }
    }

    #[test]
    #[should_panic(expected = "x is [n, columns]")]
    fn sizes_that_do_not_go_together_are_a_bug() {
        Matrix::new([2, 3], vec![0.0; 6]).apply(&[0.0; 5], &mut [0.0; 4], Onto::Replace);
    }
}
