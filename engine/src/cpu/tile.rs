//! The inner loops of products.
//!
//! Lanes are columns. Weights and `x` lie as vectors of the same columns of several rows, side by side, so that a
//! tile of results goes through both once, with a vector of sums in a register for each result.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::weights::blocks::{Block, GROUP, Vectors};

/// Rows of weights in a tile.
const ROWS: usize = 4;
/// Most rows of `x` in a tile: as many as leave registers for the weights.
const fn most<S: Simd>() -> usize {
    if S::REGISTER_COUNT < 32 { 3 } else { 6 }
}
/// Bytes of the widest vectors.
const ALIGN: usize = 64;
const ALIGN_FLOATS: usize = ALIGN / size_of::<f32>();

/// Memory for `len` floats that begins with a whole vector.
fn aligned(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if memory.len() < len + ALIGN_FLOATS {
        memory.resize(len + ALIGN_FLOATS, 0.0);
    }
    let first = memory.as_ptr().align_offset(ALIGN).min(ALIGN_FLOATS);
    &mut memory[first..][..len]
}

/// `x`, in tiles: `[tile][vector of columns][rows of the tile]`.
#[derive(Debug)]
pub(super) struct Packed {
    memory: Vec<f32>,
    first: usize,
    n: usize,
    tiles: usize,
    /// Whole groups.
    columns: usize,
}

impl Packed {
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Every tile: its rows, and its values.
    fn tiles(&self) -> impl Iterator<Item = (Range<usize>, &[f32])> {
        widths(self.n, self.tiles).map(|rows| {
            let values = &self.memory[self.first..][rows.start * self.columns..];
            (rows.clone(), &values[..rows.len() * self.columns])
        })
    }
}

/// The rows of each of `tiles` tiles, as even as can be.
fn widths(n: usize, tiles: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tiles).map(move |tile| n * tile / tiles..n * (tile + 1) / tiles)
}

/// Makes [`Packed`] of `x`, `[n, columns]`.
pub(super) struct Pack<'a> {
    pub(super) x: &'a [f32],
    pub(super) columns: usize,
}

impl WithSimd for Pack<'_> {
    type Output = Packed;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Packed {
        let n = self.x.len() / self.columns;
        let columns = self.columns.next_multiple_of(GROUP);
        let tiles = n.div_ceil(most::<S>());
        let mut memory = Vec::new();
        let mut packed = aligned(&mut memory, n * columns);
        let mut padded = vec![0.0; columns];
        let mut rows = self.x.chunks_exact(self.columns);
        for tile in widths(n, tiles) {
            let (values, rest) = packed.split_at_mut(tile.len() * columns);
            for at in 0..tile.len() {
                padded[..self.columns].copy_from_slice(rows.next().unwrap_or(&[]));
                let vectors = S::as_mut_simd_f32s(values).0;
                let vectors = vectors[at..].iter_mut().step_by(tile.len());
                for (vector, value) in vectors.zip(S::as_simd_f32s(&padded).0) {
                    *vector = *value;
                }
            }
            packed = rest;
        }
        let first = memory.as_ptr().align_offset(ALIGN).min(ALIGN_FLOATS);
        Packed { memory, first, n, tiles, columns }
    }
}

/// Columns of some rows of weights, as they are stored.
pub(super) struct Stored<'a, B> {
    /// `[rows, row_bytes]`.
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    /// Whole blocks.
    pub(super) columns: Range<usize>,
    pub(super) block: PhantomData<B>,
}

impl<'a, B: Block> Stored<'a, B> {
    fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    fn row(&self, row: usize) -> &'a [u8] {
        let at = |column: usize| column / (GROUP * B::GROUPS) * B::BYTES;
        let row = &self.bytes[row * self.row_bytes..][..self.row_bytes];
        &row[at(self.columns.start)..at(self.columns.end)]
    }
}

/// Decodes weights: `[rows / 4][vector of columns][4]`. Missing rows are what was there.
pub(super) struct Decode<'a, B> {
    pub(super) stored: Stored<'a, B>,
    pub(super) panel: &'a mut Vec<f32>,
}

impl<'a, B: Block> WithSimd for Decode<'a, B> {
    type Output = &'a [f32];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> &'a [f32] {
        let rows = self.stored.rows();
        let tile_len = ROWS * self.stored.columns.len();
        let panel = aligned(self.panel, rows.div_ceil(ROWS) * tile_len);
        let vectors = Vectors::new(simd);
        let of_group = GROUP / S::F32_LANES;
        for row in 0..rows {
            let tile = &mut panel[row / ROWS * tile_len..][..tile_len];
            let tile = S::as_mut_simd_f32s(tile).0.as_chunks_mut::<ROWS>().0;
            let blocks = self.stored.row(row).chunks_exact(B::BYTES);
            for (block, out) in blocks.zip(tile.chunks_exact_mut(B::GROUPS * of_group)) {
                for (group, out) in out.chunks_exact_mut(of_group).enumerate() {
                    let values = B::group(vectors, block, group);
                    for (out, value) in out.iter_mut().zip(S::as_simd_f32s(&values).0) {
                        out[row % ROWS] = *value;
                    }
                }
            }
        }
        panel
    }
}

/// Adds the products of a panel of [`Decode`] with `columns` of `x` to `y`, `[n][rows]`.
pub(super) struct Multiply<'a, 'y> {
    pub(super) panel: &'a [f32],
    pub(super) x: &'a Packed,
    pub(super) columns: Range<usize>,
    pub(super) y: &'a mut [&'y mut [f32]],
}

impl WithSimd for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (rows, values) in self.x.tiles() {
            let n = rows.len();
            let values = &values[self.columns.start * n..self.columns.end * n];
            let y = &mut self.y[rows];
            for (index, weights) in self.panel.chunks_exact(ROWS * self.columns.len()).enumerate() {
                let first = index * ROWS;
                match n {
                    1 => tile::<S, 1>(simd, weights, values, y, first),
                    2 => tile::<S, 2>(simd, weights, values, y, first),
                    3 => tile::<S, 3>(simd, weights, values, y, first),
                    4 => tile::<S, 4>(simd, weights, values, y, first),
                    5 => tile::<S, 5>(simd, weights, values, y, first),
                    _ => tile::<S, 6>(simd, weights, values, y, first),
                }
            }
        }
    }
}

/// Rows `first..first + ROWS` of `y`, as far as there are so many, for `N` rows of `x`.
#[inline(always)]
fn tile<S: Simd, const N: usize>(
    simd: S,
    weights: &[f32],
    x: &[f32],
    y: &mut [&mut [f32]],
    first: usize,
) {
    let weights = S::as_simd_f32s(weights).0.as_chunks::<ROWS>().0;
    let x = S::as_simd_f32s(x).0.as_chunks::<N>().0;
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for (weights, x) in weights.iter().zip(x) {
        for (sums, weight) in sums.iter_mut().zip(weights) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = simd.mul_add_e_f32s(*weight, *x, *sum);
            }
        }
    }
    add(simd, &sums, y, first);
}

/// What [`Decode`] and [`Multiply`] do together, without memory between them: for up to [`FEW`] rows of `x`, where
/// every weight is used but a few times.
pub(super) struct Direct<'a, 'y, B> {
    pub(super) stored: Stored<'a, B>,
    pub(super) x: &'a Packed,
    pub(super) y: &'a mut [&'y mut [f32]],
}

/// Most rows of `x` that [`Direct`] is for: a tile of any vectors.
pub(super) const FEW: usize = 3;

impl<B: Block> WithSimd for Direct<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (columns, last) = (&self.stored.columns, self.stored.rows() - 1);
        for (rows, values) in self.x.tiles() {
            let n = rows.len();
            let values = &values[columns.start * n..columns.end * n];
            let y = &mut self.y[rows];
            for first in (0..=last).step_by(ROWS) {
                // Rows that are missing are computed and dropped.
                let rows = std::array::from_fn(|row| self.stored.row(last.min(first + row)));
                match n {
                    1 => direct::<S, B, 1>(simd, rows, values, y, first),
                    2 => direct::<S, B, 2>(simd, rows, values, y, first),
                    _ => direct::<S, B, FEW>(simd, rows, values, y, first),
                }
            }
        }
    }
}

/// As [`tile`].
#[inline(always)]
fn direct<S: Simd, B: Block, const N: usize>(
    simd: S,
    rows: [&[u8]; ROWS],
    x: &[f32],
    y: &mut [&mut [f32]],
    first: usize,
) {
    let vectors = Vectors::new(simd);
    let of_group = GROUP / S::F32_LANES;
    let x = S::as_simd_f32s(x).0.as_chunks::<N>().0;
    let mut rows = rows.map(|row| row.chunks_exact(B::BYTES));
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for x in x.chunks_exact(B::GROUPS * of_group) {
        let blocks = rows.each_mut().map(|row| row.next().unwrap_or(&[]));
        for (group, x) in x.chunks_exact(of_group).enumerate() {
            for (sums, block) in sums.iter_mut().zip(blocks) {
                let values = B::group(vectors, block, group);
                for (weight, x) in S::as_simd_f32s(&values).0.iter().zip(x) {
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = simd.mul_add_e_f32s(*weight, *x, *sum);
                    }
                }
            }
        }
    }
    add(simd, &sums, y, first);
}

/// Adds a tile's sums to rows `first..first + ROWS` of `y`, as far as there are so many.
#[inline(always)]
fn add<S: Simd, const N: usize>(
    simd: S,
    sums: &[[S::f32s; N]; ROWS],
    y: &mut [&mut [f32]],
    first: usize,
) {
    for (n, y) in y.iter_mut().enumerate() {
        for (y, sums) in y[first..].iter_mut().zip(sums) {
            *y += simd.reduce_sum_f32s(sums[n]);
        }
    }
}
