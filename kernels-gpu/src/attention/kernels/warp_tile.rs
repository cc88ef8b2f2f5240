//! 16 query rows of one warp by `mma.sync`: logits of a page's tokens, and what their values add to the output.
//!
//! `KS = D / 16` k-steps of the query, `NT = D / 8` 8-column tiles of the output, `S` logits a thread: those of
//! `2 S` tokens, `s[4 j + 2 e + c]` of row `lane / 4 + 8 e` and token `8 j + 2 (lane % 4) + c`.

use super::group_layout::GroupLayout;
use super::rows::Rows;
use crate::attention::tile::group_bytes;
use device::matrix::Row;
use device::shared::Shared;
use device::{Element, math, matrix, warp};

/// Fragments of one warp.
pub(super) struct WarpTile<const KS: usize, const NT: usize> {
    /// The lane's address in the query tile.
    query: Shared<Row>,
    q: [[u32; 4]; KS],
    /// The output, unnormalised.
    pub(super) o: [[f32; 4]; NT],
    /// Its running softmax.
    pub(super) rows: Rows,
}

/// Whether registers have room for the query fragments beside the accumulators.
const fn keep_query(head_dim: usize) -> bool {
    head_dim <= 128
}

impl<const KS: usize, const NT: usize> WarpTile<KS, NT> {
    /// No token seen by the 16 rows at shared address `query`, which are there already.
    #[inline(always)]
    pub(super) unsafe fn new<const D: usize>(query: Shared<Row>) -> Self {
        let lane = warp::lane_id();
        // Matrices of one ldmatrix: rows 0-7 and 8-15 of the first chunk, then of the second.
        let place = lane / 8 % 2 * group_bytes(D) + lane / 16 * 128 + lane % 8 * 16;
        let mut tile = Self {
            query: query.offset(place),
            q: [[0; 4]; KS],
            o: [[0.0; 4]; NT],
            rows: Rows::EMPTY,
        };
        if keep_query(D) {
            for k in 0..KS {
                // SAFETY: the query tile is loaded.
                tile.q[k] = unsafe { tile.query_fragment(k) };
            }
        }
        tile
    }

    /// The A operand of Q K^T step `k`.
    #[inline(always)]
    unsafe fn query_fragment(&self, k: usize) -> [u32; 4] {
        // SAFETY: the address lies within the query tile.
        unsafe { matrix::ldmatrix_x4(self.query.offset(k as u32 * 256)) }
    }

    /// `Q K^T`, unscaled, for the tokens whose K begins at shared address `key`.
    #[inline(always)]
    pub(super) unsafe fn logits<E: Element, L: GroupLayout, const D: usize, const S: usize>(
        &self,
        key: Shared<Row>,
    ) -> [f32; S] {
        let lane = warp::lane_id();
        // Matrices: a token group, two chunks; then the next token group.
        let place = lane / 16 * group_bytes(D) + L::place(lane % 8, lane / 8 % 2);
        let mut s = [0.0f32; S];
        let (tiles, _) = s.as_chunks_mut::<4>();
        for k in 0..KS {
            // SAFETY: the warp is whole, query and K are there.
            unsafe {
                let a = if keep_query(D) { self.q[k] } else { self.query_fragment(k) };
                for pair in 0..S / 8 {
                    let groups = pair as u32 * 2 * group_bytes(D);
                    let from = L::further(key.offset(place + groups), k as u32);
                    let b = matrix::ldmatrix_x4(from);
                    matrix::mma_m16n8k16::<E>(&mut tiles[2 * pair], a, [b[0], b[1]]);
                    matrix::mma_m16n8k16::<E>(&mut tiles[2 * pair + 1], a, [b[2], b[3]]);
                }
            }
        }
        s
    }

    /// Multiplies the output with a factor a row, if there are any.
    #[inline(always)]
    pub(super) fn rescale(&mut self, factor: Option<[f32; 2]>) {
        if let Some(factor) = factor {
            for tile in self.o.iter_mut() {
                for i in 0..4 {
                    tile[i] *= factor[i / 2];
                }
            }
        }
    }

    /// Adds the tokens whose V begins at shared address `value`, weighed with `p`.
    #[inline(always)]
    pub(super) unsafe fn weigh<E: Element, L: GroupLayout, const D: usize, const S: usize>(
        &mut self,
        p: &[f32; S],
        value: Shared<Row>,
    ) {
        let lane = warp::lane_id();
        // Matrices: a chunk, two token groups; then the next chunk.
        let place = lane / 8 % 2 * group_bytes(D) + L::place(lane % 8, lane / 16);
        for i in 0..NT / 2 {
            for pair in 0..S / 8 {
                let a: [u32; 4] = core::array::from_fn(|i| {
                    math::pack::<E>(p[8 * pair + 2 * i], p[8 * pair + 2 * i + 1])
                });
                let groups = pair as u32 * 2 * group_bytes(D);
                // SAFETY: the warp is whole and V is there.
                unsafe {
                    let from = L::further(value.offset(place + groups), i as u32);
                    let b = matrix::ldmatrix_x4_trans(from);
                    matrix::mma_m16n8k16::<E>(&mut self.o[2 * i], a, [b[0], b[1]]);
                    matrix::mma_m16n8k16::<E>(&mut self.o[2 * i + 1], a, [b[2], b[3]]);
                }
            }
        }
    }
}
