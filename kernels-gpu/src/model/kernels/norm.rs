//! Root-mean-square normalisation (Zhang, Sennrich, arXiv 1910.07467, equation 4).

use super::{block, load_chunk, load_chunk_f32, pack_chunk, store_chunk_f32, unpack_chunk};
use crate::abi::NONE;
use crate::model::limits::{CHUNK, NORM_CHUNKS, NORM_THREADS};
use device::{Element, global, math, shared, thread};

/// What a `rms_norm` launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[_, hidden]`.
    pub x: *const f32,
    /// Rows of `x` to take, `[rows]`, [`NONE`] for one to leave out; null for the first `rows`.
    pub picks: *const u32,
    /// `[hidden]`.
    pub weight: *const f32,
    /// `[rows, hidden]`, 16 bit.
    pub out: *mut u16,
    /// Elements of a row.
    pub hidden: u32,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// `out[i] = x / sqrt(mean(x^2) + eps) * weight` for the row `x` that is picked. A block a row.
///
/// # Safety
/// The arrays are valid for their shapes and 16-byte aligned, picked rows exist, `hidden` is a multiple of 8 from 8
/// to [`MAX_HIDDEN`](crate::model::limits::MAX_HIDDEN).
#[inline(always)]
pub unsafe fn rms_norm<E: Element>(n: Norm) {
    // SAFETY: the caller's.
    unsafe { norm::<E, false>(n, core::ptr::null()) }
}

/// The same of `x + added`, which becomes the row: `added` is `[_, hidden]`, 16 bit, as `x` is picked from.
///
/// # Safety
/// As there; `x` is valid for writes, `added` as `x` is, and no row is picked twice.
#[inline(always)]
pub unsafe fn add_rms_norm<E: Element>(n: Norm, added: *const u16) {
    // SAFETY: the caller's.
    unsafe { norm::<E, true>(n, added) }
}

#[inline(always)]
unsafe fn norm<E: Element, const ADDS: bool>(n: Norm, added: *const u16) {
    let row = thread::block_idx_x();
    let mut pick = row;
    if !n.picks.is_null() {
        // SAFETY: one for each block.
        pick = unsafe { global::load_u32(n.picks.add(row as usize)) };
        if pick == NONE {
            return;
        }
    }
    let first = pick as usize * n.hidden as usize;
    let source = n.x.wrapping_add(first);
    let out = n.out.wrapping_add(row as usize * n.hidden as usize);
    let dim_of = |i: usize| (i as u32 * NORM_THREADS + thread::thread_idx_x()) * CHUNK;
    let mut x = [[0.0; CHUNK as usize]; NORM_CHUNKS as usize];
    let mut weight = x;
    for i in 0..NORM_CHUNKS as usize {
        let dim = dim_of(i);
        if dim < n.hidden {
            // SAFETY: a chunk of the row. The weights are asked for before they are needed.
            unsafe {
                x[i] = load_chunk_f32(source.add(dim as usize));
                weight[i] = load_chunk_f32(n.weight.add(dim as usize));
                if ADDS {
                    let more = unpack_chunk::<E>(load_chunk(added.add(first + dim as usize)));
                    x[i] = core::array::from_fn(|j| x[i][j] + more[j]);
                    store_chunk_f32(source.add(dim as usize).cast_mut(), x[i]);
                }
            }
        }
    }
    let mut squares = 0.0;
    for chunk in &x {
        for value in chunk {
            squares = math::fma(*value, *value, squares);
        }
    }
    // SAFETY: all threads of the block are here.
    let total =
        unsafe { block::sum::<{ NORM_THREADS / 32 }>(squares, shared::dynamic_shared_mem()) };
    let scale = math::reciprocal_sqrt(total / n.hidden as f32 + n.eps);
    for i in 0..NORM_CHUNKS as usize {
        let dim = dim_of(i);
        if dim < n.hidden {
            let values = core::array::from_fn(|j| x[i][j] * scale * weight[i][j]);
            // SAFETY: a chunk of the row.
            unsafe { global::store_v4_u32(out.add(dim as usize).cast(), pack_chunk::<E>(values)) };
        }
    }
}
