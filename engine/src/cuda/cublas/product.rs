//! Row-major products as cuBLAS, which counts columns first, wants them.

use deft::DType;
use deft::cuda::DevicePtr;

/// `y[rows, outputs] = x[rows, inner] w[outputs, inner]^T`, all row-major; `x` and `w` are of 16 bits, sums f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) inner: u32,
    /// Elements from a row of `y` to the next; `outputs`, or more.
    pub(crate) stride: u32,
    pub(crate) x: DevicePtr,
    pub(crate) w: DevicePtr,
    pub(crate) y: DevicePtr,
    /// Of `x` and `w`.
    pub(crate) dtype: DType,
    pub(crate) into: Sums,
}

/// What becomes of a product's sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// They are rounded to the type of `x` and `w`.
    Half,
    /// They are f32.
    F32,
    /// They are added to what is in `y`, f32.
    Added,
}

/// The arguments of a column-major `C = op_a(A) op_b(B) + beta C`, with `op_a(A)` of `m x k`, `op_b(B)` of
/// `k x n`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColumnMajor {
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    pub(super) m: i32,
    pub(super) n: i32,
    pub(super) k: i32,
    pub(super) lda: i32,
    pub(super) ldb: i32,
    pub(super) ldc: i32,
    pub(super) beta: f32,
}

impl Product {
    /// With A = `w`, B = `x`, C = `y`: read by columns, a row-major matrix is its transpose, and
    /// `y^T = w x^T`.
    pub(super) fn column_major(&self) -> ColumnMajor {
        let sizes = [self.rows, self.outputs, self.inner, self.stride];
        let [rows, outputs, inner, stride] = sizes.map(|size| size as i32);
        ColumnMajor {
            transpose_a: true,
            transpose_b: false,
            m: outputs,
            n: rows,
            k: inner,
            lda: inner,
            ldb: inner,
            ldc: stride,
            beta: if self.into == Sums::Added { 1.0 } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `C = op_a(A) op_b(B) + beta C` by its definition (BLAS, level 3).
    fn gemm(call: &ColumnMajor, a: &[f64], b: &[f64], c: &mut [f64]) {
        let at = |matrix: &[f64], ld: i32, row: i32, column: i32, transpose: bool| {
            let (row, column) = if transpose { (column, row) } else { (row, column) };
            assert!(row < ld, "a row beyond the leading dimension");
            matrix[(column * ld + row) as usize]
        };
        for column in 0..call.n {
            for row in 0..call.m {
                let products = (0..call.k).map(|k| {
                    at(a, call.lda, row, k, call.transpose_a)
                        * at(b, call.ldb, k, column, call.transpose_b)
                });
                let sum: f64 = products.sum();
                let place = &mut c[(column * call.ldc + row) as usize];
                *place = sum + if call.beta == 0.0 { 0.0 } else { f64::from(call.beta) * *place };
            }
        }
    }

    #[test]
    fn a_row_major_product_comes_out_of_the_column_major_call() {
        for (rows, outputs, inner) in [(1, 1, 1), (1, 7, 5), (3, 5, 2), (6, 4, 9)] {
            let value = |seed: usize, i: usize| ((i * 37 + seed * 11) % 19) as f64 - 9.0;
            let x: Vec<f64> = (0..rows * inner).map(|i| value(1, i)).collect();
            let w: Vec<f64> = (0..outputs * inner).map(|i| value(2, i)).collect();
            // Rows lie close together, or with something between.
            let cases = [(outputs, Sums::Half), (outputs + 2, Sums::F32), (outputs, Sums::Added)];
            for (stride, into) in cases {
                let before: Vec<f64> = (0..rows * stride).map(|i| value(3, i)).collect();
                let product = Product {
                    rows: rows as u32,
                    outputs: outputs as u32,
                    inner: inner as u32,
                    stride: stride as u32,
                    x: DevicePtr::NULL,
                    w: DevicePtr::NULL,
                    y: DevicePtr::NULL,
                    dtype: DType::F16,
                    into,
                };
                let kept =
                    if into == Sums::Added { before.clone() } else { vec![f64::NAN; before.len()] };
                let mut y = kept.clone();
                gemm(&product.column_major(), &w, &x, &mut y);
                for row in 0..rows {
                    for output in 0..outputs {
                        let terms = (0..inner).map(|i| x[row * inner + i] * w[output * inner + i]);
                        let at = row * stride + output;
                        let added = if into == Sums::Added { kept[at] } else { 0.0 };
                        assert_eq!(y[at], terms.sum::<f64>() + added, "{rows} {outputs} {inner}");
                    }
                }
            }
        }
    }
}
