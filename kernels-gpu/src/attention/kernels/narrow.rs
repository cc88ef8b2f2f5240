//! Up to 16 rows: `mma.sync`. The two warpgroups take turns at pages, the four warps of one share a
//! page's tokens, each with a running softmax of its own; the eight partial results meet at the end.

use super::block::{Block, Work};
use super::page_tail;
use super::ring::Ring;
use super::rows::{Rows, hide, soft_cap};
use super::sink::{Sink, inverse};
use crate::attention::tile::{CONSUMER_WARPS, CONSUMERS, Tile};
use crate::device::{Element, bulk, math, matrix, register, shared, thread, warp};
use crate::softmax::Partial;

/// Fragments of one warp: `KS` k-steps of the query, `NT` 8-column tiles of the output.
struct Fragments<const KS: usize, const NT: usize> {
    q: [[u32; 4]; KS],
    o: [[f32; 4]; NT],
    rows: Rows,
}

/// Processes all pages of an item. `KS = D / 16`, `NT = D / 8`.
#[inline(always)]
pub(super) unsafe fn run<E: Element, const D: usize, const KS: usize, const NT: usize>(
    work: &Work,
    ring: &mut Ring<D>,
) {
    let block = work.block;
    let mut f = Fragments::<KS, NT> {
        q: [[0; 4]; KS],
        o: [[0.0; 4]; NT],
        rows: Rows::EMPTY,
    };
    if keep_query(D) {
        for (k, fragment) in f.q.iter_mut().enumerate() {
            // SAFETY: the query tile is loaded.
            *fragment = unsafe { query_fragment::<D>(block.shared, k) };
        }
    }
    let mut mine = block.warp < 4;
    let mut left = work.pages;
    while left > 0 {
        // SAFETY: a stage is read between its arrival and its release.
        unsafe {
            if mine {
                step::<E, D, KS, NT>(&mut f, work, ring);
            } else {
                ring.skip();
            }
        }
        mine = !mine;
        left -= 1;
    }
    // SAFETY: all consumers are through with the item's pages.
    unsafe { finish::<E, D, KS, NT>(f, block, &work.sink()) };
}

/// Whether registers have room for the query fragments beside the accumulators.
const fn keep_query(head_dim: usize) -> bool {
    head_dim <= 128
}

/// The A operand of QK^T step `k`.
#[inline(always)]
unsafe fn query_fragment<const D: usize>(shared: u32, k: usize) -> [u32; 4] {
    let lane = warp::lane_id();
    // Matrices of one ldmatrix: rows 0-7 and 8-15 of the first chunk, then of the second.
    let place = lane / 8 % 2 * Tile::<D>::GROUP_BYTES + lane / 16 * 128 + lane % 8 * 16;
    // SAFETY: the address lies within the query tile.
    unsafe { matrix::ldmatrix_x4(shared + Tile::<D>::QUERY + place + k as u32 * 256) }
}

/// One page: this warp's 16 tokens.
#[inline(always)]
unsafe fn step<E: Element, const D: usize, const KS: usize, const NT: usize>(
    f: &mut Fragments<KS, NT>,
    work: &Work,
    ring: &mut Ring<D>,
) {
    let lane = work.block.thread % 32;
    let (matrix_index, row) = (lane / 8, lane % 8);
    let quarter = work.block.warp % 4;
    let mut s = [[0.0f32; 4]; 2];
    let page;
    // SAFETY: the warp is whole and the page has landed.
    unsafe {
        ring.wait_full();
        page = ring.page();
        // Matrices: token group 0 of the quarter, two chunks; then token group 1.
        let k = ring.key()
            + (quarter * 2 + matrix_index / 2) * Tile::<D>::GROUP_BYTES
            + matrix_index % 2 * 128
            + row * 16;
        for i in 0..KS {
            let a = if keep_query(D) {
                f.q[i]
            } else {
                query_fragment::<D>(work.block.shared, i)
            };
            let b = matrix::ldmatrix_x4(k + i as u32 * 256);
            matrix::mma_m16n8k16::<E>(&mut s[0], a, [b[0], b[1]]);
            matrix::mma_m16n8k16::<E>(&mut s[1], a, [b[2], b[3]]);
        }
    }
    let mut s = [
        s[0][0], s[0][1], s[0][2], s[0][3], s[1][0], s[1][1], s[1][2], s[1][3],
    ];
    soft_cap(&mut s, work.block.logits);
    // SAFETY: the warp is whole and the page is not released yet; its tail is this warp's.
    unsafe {
        if warp::any(page.tokens != 0) {
            hide(&mut s, work, page, lane / 4, quarter * 16 + lane % 4 * 2);
            page_tail::clear::<D>(
                ring.value(),
                page.tokens,
                quarter * 16..quarter * 16 + 16,
                lane,
                32,
            );
            // The copy that fills the stage next is of the other proxy.
            bulk::fence_proxy_async_shared();
            warp::sync_warp();
        }
        if let Some(factor) = f.rows.update(&mut s, work.block.logits) {
            for tile in f.o.iter_mut() {
                for i in 0..4 {
                    tile[i] *= factor[i / 2];
                }
            }
        }
        let p: [u32; 4] = core::array::from_fn(|i| math::pack::<E>(s[2 * i], s[2 * i + 1]));
        // Matrices: chunk 0, two token groups; then chunk 1.
        let v = ring.value()
            + (quarter * 2 + matrix_index % 2) * Tile::<D>::GROUP_BYTES
            + matrix_index / 2 * 128
            + row * 16;
        for i in 0..NT / 2 {
            let b = matrix::ldmatrix_x4_trans(v + i as u32 * 256);
            matrix::mma_m16n8k16::<E>(&mut f.o[2 * i], p, [b[0], b[1]]);
            matrix::mma_m16n8k16::<E>(&mut f.o[2 * i + 1], p, [b[2], b[3]]);
        }
        ring.release();
    }
    ring.advance();
}

/// Merges the eight warps' results and stores them.
#[inline(always)]
unsafe fn finish<E: Element, const D: usize, const KS: usize, const NT: usize>(
    mut f: Fragments<KS, NT>,
    block: &Block,
    sink: &Sink<D>,
) {
    let lane = register::late(block.thread) % 32;
    let row = lane / 4;
    let statistics = block.shared + Tile::<D>::STATISTICS;
    let own = statistics + block.warp * 128 + row * 8;
    // SAFETY: the warp's own part of the statistics; the barrier publishes it.
    unsafe {
        f.rows.reduce();
        if lane.is_multiple_of(4) {
            shared::store_v2_f32(own, [f.rows.max[0], f.rows.sum[0]]);
            shared::store_v2_f32(own + 64, [f.rows.max[1], f.rows.sum[1]]);
        }
        thread::named_barrier_sync::<1>(CONSUMERS);
    }
    let (mut max, mut sum, mut weight) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    for e in 0..2 {
        // SAFETY: statistics of a row, written before the barrier.
        (max[e], sum[e]) = unsafe { combine(statistics + row * 8 + e as u32 * 64) };
        let reference = if max[e] == f32::NEG_INFINITY {
            0.0
        } else {
            max[e]
        };
        weight[e] = math::exp2(f.rows.max[e] - reference) * inverse(sum[e]);
    }
    let places = [sink.row(row), sink.row(row + 8)];
    if block.warp == 0 && lane.is_multiple_of(4) {
        // SAFETY: the row is this thread's alone.
        unsafe {
            places[0].store_lse(Partial {
                max: max[0],
                sum: sum[0],
            });
            places[1].store_lse(Partial {
                max: max[1],
                sum: sum[1],
            });
        }
    }
    let exchange = block.shared + Tile::<D>::QUERY;
    // 64 columns a pass: what eight warps exchange fits the query tile whatever the head dimension.
    for pass in 0..NT / 8 {
        // SAFETY: the exchange lies in the query tile, which is free after the barrier above; barriers order it.
        unsafe {
            if pass > 0 {
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            for t in 0..8 {
                let o = &f.o[pass * 8 + t];
                let place = exchange + (block.warp * 8 + t as u32) * 512 + lane * 8;
                shared::store_v2_f32(place, [o[0] * weight[0], o[1] * weight[0]]);
                shared::store_v2_f32(place + 256, [o[2] * weight[1], o[3] * weight[1]]);
            }
            thread::named_barrier_sync::<1>(CONSUMERS);
            // Each warp adds up one of the eight 8-column tiles.
            for (e, place) in places.into_iter().enumerate() {
                let mut total = [0.0f32; 2];
                for w in 0..CONSUMER_WARPS {
                    let part = shared::load_v2_f32(
                        exchange + (w * 8 + block.warp) * 512 + e as u32 * 256 + lane * 8,
                    );
                    total[0] += part[0];
                    total[1] += part[1];
                }
                place.store::<E, D>(pass as u32 * 64 + block.warp * 8 + lane % 4 * 2, 1, |_| {
                    total
                });
            }
        }
    }
}

/// Reference exponent and sum of a row over the eight warps, whose statistics lie 128 bytes apart.
#[inline(always)]
unsafe fn combine(first: u32) -> (f32, f32) {
    let mut max = f32::NEG_INFINITY;
    let mut parts = [[0.0f32; 2]; CONSUMER_WARPS as usize];
    for (w, part) in parts.iter_mut().enumerate() {
        // SAFETY: statistics of all warps, `first` being the caller's.
        *part = unsafe { shared::load_v2_f32(first + w as u32 * 128) };
        max = math::max(max, part[0]);
    }
    let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = 0.0;
    for part in parts {
        sum += part[1] * math::exp2(part[0] - reference);
    }
    (max, sum)
}
