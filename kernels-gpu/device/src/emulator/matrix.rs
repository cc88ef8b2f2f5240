//! Warp-wide matrix fragments (`ldmatrix`, `stmatrix`, `mma.sync`).
//!
//! The maps from lanes to elements are the PTX ISA's, "Matrix Fragments for mma.m16n8k16" and
//! "ldmatrix"; `fragment` is the one from which the others are made.

use std::panic::Location;

use half::{bf16, f16};

use crate::emulator::report::Site;
use crate::emulator::span::check_aligned;
use crate::emulator::warp::{Outcome, collective};

/// Bytes of a row of an 8x8 matrix.
const ROW: u32 = 16;

/// Lane, and half of its word, of element `(row, column)` of an 8x8 matrix.
pub(crate) fn fragment(row: usize, column: usize) -> (usize, usize) {
    (4 * row + column / 2, column % 2)
}

/// The 16-bit half of a word.
fn half(word: u32, half: usize) -> u16 {
    (word >> (16 * half)) as u16
}

fn set_half(word: &mut u32, half: usize, value: u16) {
    *word = *word & !(0xffff << (16 * half)) | u32::from(value) << (16 * half);
}

/// A 16-bit element as `f32`.
#[inline]
pub(crate) fn to_f32(bits: u16, is_bf16: bool) -> f32 {
    if is_bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
}

/// `ldmatrix` of `COUNT` matrices: lane `8 * m + r` gives the address of matrix `m`'s row `r`.
#[track_caller]
pub fn load<const COUNT: usize>(row: u32, transposed: bool) -> [u32; COUNT] {
    let site = Location::caller();
    let mut operands = (row, [0; COUNT]);
    collective("ldmatrix", site, &mut operands, |block, lanes| {
        let first = block.current / 32 * 32;
        let poison = block.grid.poison_matrix_reads;
        for m in 0..COUNT {
            for r in 0..8 {
                let lane = 8 * m + r;
                let address = lanes[lane].0;
                check_aligned("shared", address.into(), ROW)?;
                let bytes = block.read_shared(first + lane as u32, address, ROW, poison, site)?;
                let mut values = [0u16; 8];
                bytemuck::bytes_of_mut(&mut values).copy_from_slice(bytes);
                for (c, value) in values.into_iter().enumerate() {
                    let (lane, part) = if transposed { fragment(c, r) } else { fragment(r, c) };
                    set_half(&mut lanes[lane].1[m], part, value);
                }
            }
        }
        Ok(Outcome::Go)
    });
    operands.1
}

/// `stmatrix` of `COUNT` matrices, the inverse of [`load`].
#[track_caller]
pub fn store<const COUNT: usize>(row: u32, fragments: [u32; COUNT], transposed: bool) {
    let site = Location::caller();
    let mut operands = (row, fragments);
    collective("stmatrix", site, &mut operands, |block, lanes| {
        let first = block.current / 32 * 32;
        for m in 0..COUNT {
            for r in 0..8 {
                let values: [u16; 8] = std::array::from_fn(|c| {
                    let (lane, part) = if transposed { fragment(c, r) } else { fragment(r, c) };
                    half(lanes[lane].1[m], part)
                });
                let lane = 8 * m + r;
                let address = lanes[lane].0;
                check_aligned("shared", address.into(), ROW)?;
                block.write_shared(
                    first + lane as u32,
                    address,
                    bytemuck::bytes_of(&values),
                    site,
                )?;
            }
        }
        Ok(Outcome::Go)
    });
}

/// A lane's operands of `mma.m16n8k16`.
struct Mma {
    c: [f32; 4],
    a: [u32; 4],
    b: [u32; 2],
}

/// `mma.sync.aligned.m16n8k16.row.col.f32` of 16-bit elements: `c += a * b`.
#[track_caller]
pub fn mma_m16n8k16(c: &mut [f32; 4], a: [u32; 4], b: [u32; 2], is_bf16: bool) {
    let site: Site = Location::caller();
    let mut operands = Mma { c: *c, a, b };
    collective("mma", site, &mut operands, |_, lanes| {
        let fragments: [[u32; 4]; 32] = std::array::from_fn(|lane| lanes[lane].a);
        let a = a_tile(&fragments, is_bf16);
        // b[k][n]: fragment h holds rows 8 * h.., transposed.
        let mut b = [[0.0; 8]; 16];
        for (k, row) in b.iter_mut().enumerate() {
            for (n, value) in row.iter_mut().enumerate() {
                let (lane, part) = fragment(n, k % 8);
                *value = to_f32(half(lanes[lane].b[k / 8], part), is_bf16);
            }
        }
        for (m, row) in a.iter().enumerate() {
            let mut sums = [0.0; 8];
            for (x, row) in row.iter().zip(&b) {
                for (sum, y) in sums.iter_mut().zip(row) {
                    *sum += x * y;
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                let (lane, part) = fragment(m % 8, n);
                lanes[lane].c[2 * (m / 8) + part] += sum;
            }
        }
        Ok(Outcome::Go)
    });
    *c = operands.c;
}

/// `a[m][k]` of a warp's 16 rows, from its fragments: rows 0.. and 8.. of columns 0.., then of columns
/// 8...
pub(crate) fn a_tile(fragments: &[[u32; 4]; 32], is_bf16: bool) -> [[f32; 16]; 16] {
    std::array::from_fn(|m| {
        std::array::from_fn(|k| {
            let (lane, part) = fragment(m % 8, k % 8);
            to_f32(half(fragments[lane][m / 8 + 2 * (k / 8)], part), is_bf16)
        })
    })
}
