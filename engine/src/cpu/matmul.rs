//! Products with matrices of weights, which stay as they are stored.
//!
//! A task has a few rows of a matrix. It decodes them a span of columns at a time into memory that stays in the
//! cache, and multiplies that with all of `x`. No result depends on how many threads there are, nor on what else is
//! in the batch: every element is the sum over spans of one vector's lanes, which take the columns in order.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use super::tile::{Decode, Direct, FEW, Multiply, Pack, Packed, Stored};
use crate::weights::blocks::{Block, GROUP};
use crate::weights::{Format, WithBlock};

/// Rows of a task. Not by the number of threads, so that small matrices have enough tasks and large ones fair shares.
const TASK_ROWS: usize = 32;
/// Columns that are decoded at a time: whole blocks of every format. A task's are 192 KiB, as much of a core's L2.
const SPAN: usize = 1536;

/// A matrix of weights, `[rows, columns]`, as it is stored.
#[derive(Debug)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    format: Format,
    /// `[rows, row_bytes]`: whole groups, of which those of floats end with zeros.
    bytes: Vec<u8>,
    row_bytes: usize,
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
    /// `bytes` are `[rows, bytes of a row]` in `format`.
    pub(super) fn new([rows, columns]: [usize; 2], format: Format, bytes: Vec<u8>) -> Self {
        let stored = format.bytes(columns as u64).map(|bytes| bytes as usize);
        let stored = stored.filter(|stored| stored * rows == bytes.len());
        let stored = stored.expect("bytes are [rows, columns]");
        let padded = columns.next_multiple_of(GROUP.max(format.block_elements()));
        let row_bytes = padded / format.block_elements() * format.block_bytes();
        Self {
            rows,
            columns,
            format,
            bytes: if row_bytes == stored {
                bytes
            } else {
                let mut rows = bytes.chunks_exact(stored).map(<[u8]>::to_vec).collect::<Vec<_>>();
                rows.iter_mut().for_each(|row| row.resize(row_bytes, 0));
                rows.concat()
            },
            row_bytes,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Appends a row, `[columns]`, to `out`.
    pub(super) fn push_row(&self, row: usize, out: &mut Vec<f32>) {
        let first = out.len();
        out.resize(first + self.columns, 0.0);
        let stored = self.format.bytes(self.columns as u64).unwrap_or(0) as usize;
        let bytes = &self.bytes[row * self.row_bytes..][..stored];
        self.format.dequantize(bytes, &mut out[first..]);
    }

    /// `y[n] = W x[n]` for all `n`: `x` is `[n, columns]`, `y` is `[n, rows]`.
    ///
    /// # Panics
    /// If `x` and `y` are of other sizes.
    pub(super) fn apply(&self, x: &[f32], y: &mut [f32], onto: Onto) {
        apply_all([(self, y)], x, onto);
    }
}

/// [`Matrix::apply`] of several matrices to the same `x`, side by side.
///
/// # Panics
/// If `x` and the results are not of one number of rows, or `x` is not of the matrices' columns.
pub(super) fn apply_all<const N: usize>(
    products: [(&Matrix, &mut [f32]); N],
    x: &[f32],
    onto: Onto,
) {
    apply_by(Arch::new(), products, x, onto);
}

fn apply_by<const N: usize>(
    arch: Arch,
    products: [(&Matrix, &mut [f32]); N],
    x: &[f32],
    onto: Onto,
) {
    let Some(columns) = products.first().map(|(matrix, _)| matrix.columns) else {
        return;
    };
    let n = x.len() / columns;
    assert_eq!(x.len(), n * columns, "x is [n, columns]");
    let packed = arch.dispatch(Pack { x, columns });
    let mut tasks = Vec::new();
    for (matrix, y) in products {
        assert_eq!(matrix.columns, columns, "all matrices are of x's columns");
        assert_eq!(y.len(), n * matrix.rows, "y is [n, rows]");
        let first = tasks.len();
        tasks.extend((0..matrix.rows).step_by(TASK_ROWS).map(|row| Task::new(matrix, row, n)));
        for row in y.chunks_exact_mut(matrix.rows) {
            for (task, part) in tasks[first..].iter_mut().zip(row.chunks_mut(TASK_ROWS)) {
                task.y.push(part);
            }
        }
    }
    tasks.into_par_iter().for_each(|task| task.run(arch, &packed, onto));
}

/// Some rows of a matrix, and of all results.
struct Task<'a> {
    format: Format,
    /// `[rows, row_bytes]`.
    bytes: &'a [u8],
    row_bytes: usize,
    /// `[n][rows]`.
    y: Vec<&'a mut [f32]>,
}

thread_local! {
    /// Decoded weights.
    static PANEL: RefCell<Vec<f32>> = RefCell::default();
}

impl<'a> Task<'a> {
    fn new(matrix: &'a Matrix, row: usize, n: usize) -> Self {
        let last = matrix.rows.min(row + TASK_ROWS);
        Self {
            format: matrix.format,
            bytes: &matrix.bytes[row * matrix.row_bytes..last * matrix.row_bytes],
            row_bytes: matrix.row_bytes,
            y: Vec::with_capacity(n),
        }
    }

    fn run(mut self, arch: Arch, x: &Packed, onto: Onto) {
        if onto == Onto::Replace {
            self.y.iter_mut().for_each(|y| y.fill(0.0));
        }
        PANEL.with_borrow_mut(|panel| {
            for begin in (0..x.columns()).step_by(SPAN) {
                self.format.with_block(Span {
                    arch,
                    bytes: self.bytes,
                    row_bytes: self.row_bytes,
                    columns: begin..x.columns().min(begin + SPAN),
                    x,
                    y: &mut self.y,
                    panel,
                });
            }
        });
    }
}

/// A task's part in some columns.
struct Span<'a, 'y> {
    arch: Arch,
    bytes: &'a [u8],
    row_bytes: usize,
    columns: Range<usize>,
    x: &'a Packed,
    y: &'a mut [&'y mut [f32]],
    panel: &'a mut Vec<f32>,
}

impl WithBlock for Span<'_, '_> {
    type Output = ();

    fn run<B: Block>(self) {
        let Self { arch, bytes, row_bytes, columns, x, y, panel } = self;
        let stored = Stored::<B> { bytes, row_bytes, columns: columns.clone(), block: PhantomData };
        if y.len() <= FEW {
            return arch.dispatch(Direct { stored, x, y });
        }
        let panel = arch.dispatch(Decode { stored, panel });
        arch.dispatch(Multiply { panel, x, columns, y });
    }
}

#[cfg(test)]
mod tests;
