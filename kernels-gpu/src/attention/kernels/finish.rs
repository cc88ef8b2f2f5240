//! How a work item's results leave the registers.

use super::block::Block;
use super::rows::Rows;
use super::sink::{Sink, inverse};
use super::warp_tile::WarpTile;
use crate::attention::tile::{CONSUMER_WARPS, CONSUMERS};
use crate::softmax::Partial;
use device::shared::Shared;
use device::{Element, math, register, thread, warp};

/// Stores a thread's rows, `row` and `row + 8`, whose statistics are reduced. `pair(j, e)` is row `row + 8 e`'s
/// normalised value of columns `8 j + 2 (lane % 4)` and the next.
#[inline(always)]
pub(super) unsafe fn store_rows<E: Element, const D: usize>(
    rows: &Rows,
    sink: &Sink<D>,
    row: u32,
    pair: impl Fn(usize, usize) -> [f32; 2],
) {
    let lane = warp::lane_id();
    for e in 0..2 {
        let place = sink.row(row + 8 * e as u32);
        // SAFETY: the row is this thread's alone.
        unsafe {
            place.store::<E, D>(lane % 4 * 2, D / 8, |j| pair(j, e));
            if lane.is_multiple_of(4) {
                place.store_lse(rows.partial(e));
            }
        }
    }
}

/// Shared memory that warps join their results through.
#[derive(Clone, Copy)]
pub(super) struct Exchange {
    /// Address of the statistics, `[warp][16 rows]` of reference exponent and sum.
    pub(super) statistics: Shared<[f32; 2]>,
    /// Address of 32 KiB, free once all consumers are through with the item's pages.
    pub(super) outputs: Shared<[f32; 2]>,
}

/// Joins the results of `PARTS` neighbouring warps over the same 16 rows, and stores them; by all consumers.
#[inline(always)]
pub(super) unsafe fn join<
    E: Element,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const PARTS: usize,
>(
    mut tile: WarpTile<KS, NT>,
    block: &Block,
    exchange: Exchange,
    sink: &Sink<D>,
) {
    let lane = register::late(block.thread) % 32;
    let row = lane / 4;
    // With one row tile a block, the compiler is to see that its warps begin at 0.
    let parts = PARTS as u32;
    let first_warp = if parts == CONSUMER_WARPS { 0 } else { block.warp / parts * parts };
    let part = block.warp - first_warp;
    let own = exchange.statistics.offset(block.warp * 128 + row * 8);
    // SAFETY: the warp's own part of the statistics; the barrier publishes it.
    unsafe {
        tile.rows.reduce();
        if lane.is_multiple_of(4) {
            own.store([tile.rows.max[0], tile.rows.sum[0]]);
            own.offset(64).store([tile.rows.max[1], tile.rows.sum[1]]);
        }
        thread::named_barrier_sync::<1>(CONSUMERS);
    }
    let (mut max, mut sum, mut weight) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    let statistics = exchange.statistics.offset(first_warp * 128 + row * 8);
    for e in 0..2 {
        // SAFETY: statistics of a row, written before the barrier.
        (max[e], sum[e]) = unsafe { combine::<PARTS>(statistics.offset(e as u32 * 64)) };
        let reference = if max[e] == f32::NEG_INFINITY { 0.0 } else { max[e] };
        weight[e] = math::exp2(tile.rows.max[e] - reference) * inverse(sum[e]);
    }
    let first_row = first_warp / parts * 16;
    let places = [sink.row(first_row + row), sink.row(first_row + row + 8)];
    if part == 0 && lane.is_multiple_of(4) {
        // SAFETY: the row is this thread's alone.
        unsafe {
            places[0].store_lse(Partial { max: max[0], sum: sum[0] });
            places[1].store_lse(Partial { max: max[1], sum: sum[1] });
        }
    }
    // 64 columns a pass: what eight warps exchange is then 32 KiB whatever the head dimension.
    for pass in 0..NT / 8 {
        // SAFETY: the exchange is free after the barrier above; barriers order it.
        unsafe {
            if pass > 0 {
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            for t in 0..8 {
                let o = &tile.o[pass * 8 + t];
                let place = exchange.outputs.offset((block.warp * 8 + t as u32) * 512 + lane * 8);
                place.store([o[0] * weight[0], o[1] * weight[0]]);
                place.offset(256).store([o[2] * weight[1], o[3] * weight[1]]);
            }
            thread::named_barrier_sync::<1>(CONSUMERS);
            // Each warp adds up its share of the eight 8-column tiles.
            for share in 0..8 / parts {
                let column_tile = part * (8 / parts) + share;
                let column = pass as u32 * 64 + column_tile * 8 + lane % 4 * 2;
                let from = exchange.outputs.offset((first_warp * 8 + column_tile) * 512 + lane * 8);
                for (e, place) in places.into_iter().enumerate() {
                    let mut total = [0.0f32; 2];
                    for w in 0..parts {
                        let part = from.offset(w * 4096 + e as u32 * 256).load();
                        total[0] += part[0];
                        total[1] += part[1];
                    }
                    place.store::<E, D>(column, 1, |_| total);
                }
            }
        }
    }
}

/// Reference exponent and sum of a row over `PARTS` warps, whose statistics lie 128 bytes apart.
#[inline(always)]
unsafe fn combine<const PARTS: usize>(first: Shared<[f32; 2]>) -> (f32, f32) {
    let mut max = f32::NEG_INFINITY;
    let mut parts = [[0.0f32; 2]; PARTS];
    for (w, part) in parts.iter_mut().enumerate() {
        // SAFETY: statistics of all warps, `first` being the caller's.
        *part = unsafe { first.offset(w as u32 * 128).load() };
        max = math::max(max, part[0]);
    }
    let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = 0.0;
    for part in parts {
        sum += part[1] * math::exp2(part[0] - reference);
    }
    (max, sum)
}
