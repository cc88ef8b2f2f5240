//! Merging partial results along the tree: one warp a query and head.

use super::sink::inverse;
use crate::abi::{MergeRow, NONE};
use crate::attention::tile::MERGE_WARPS;
use crate::device::{Element, global, grid, math, thread, warp};

/// What a `merge` launch reads and writes; the partials as `attend` leaves them.
#[derive(Clone, Copy)]
pub struct Merge {
    /// `[kv_heads][partial_slots][group][head_dim]`.
    pub partial_o: *const f32,
    /// `[kv_heads][partial_slots][group]`, base 2.
    pub partial_lse: *const f32,
    /// Queries to merge.
    pub rows: *const MergeRow,
    /// Their slots.
    pub slots: *const u32,
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub out: *mut u16,
    /// `[queries, q_heads]`, natural logarithm; null if not wanted.
    pub lse: *mut f32,
    /// Number of queries to merge.
    pub row_count: u32,
    /// Slots a KV head.
    pub partial_slots: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Query heads a KV head.
    pub group: u32,
}

/// Merges one query and head. `V = D / 32` values a lane.
///
/// # Safety
/// The pointers are valid for what the sizes say; the rows' slots lie within `slots`, and what those name
/// within the partials.
#[inline(always)]
pub unsafe fn merge<E: Element, const D: usize, const V: usize>(m: Merge) {
    let q_heads = m.kv_heads * m.group;
    let task = thread::block_idx_x() * MERGE_WARPS + thread::thread_idx_x() / 32;
    if task >= m.row_count * q_heads {
        return;
    }
    let head = task % q_heads;
    let first = head / m.group * m.partial_slots;
    let place = |slot: u32| (first + slot) as usize * m.group as usize + (head % m.group) as usize;
    let lane = warp::lane_id();
    // SAFETY: rows, slots and partials lie where `Merge` says; the warp is whole, and partials are read after the launch that writes them.
    unsafe {
        let [query, slot_begin, slot_count, _] =
            global::load_v4_u32(m.rows.add((task / q_heads) as usize).cast());
        if query == NONE {
            // The grid must not end before the one it waits for, even if all its rows are unused.
            grid::wait_dependencies();
            return;
        }
        let mut running = Running::<V> {
            max: f32::NEG_INFINITY,
            sum: 0.0,
            o: [0.0; V],
        };
        let mut done = 0;
        let mut slot = load_slot(&m, slot_begin, slot_count, lane);
        grid::wait_dependencies();
        while done < slot_count {
            let left = slot_count - done;
            let batch = if left < 32 { left } else { 32 };
            let lse = if lane < batch {
                global::load_f32(m.partial_lse.add(place(slot)))
            } else {
                f32::NEG_INFINITY
            };
            let row = |i: u32| {
                // Past the last slot the last is read again, with weight zero.
                let i = if i < batch { i } else { batch - 1 };
                m.partial_o
                    .add(place(warp::shuffle_idx_u32(slot, i)) * D + lane as usize * V)
            };
            // Asked for before the weights are known: one trip to memory less.
            let mut values = load_rows(row, 0);
            let weight = running.raise(lse);
            let mut next = 0;
            loop {
                running.add(&values, weight, next);
                next += ROWS as u32;
                if next >= batch {
                    break;
                }
                values = load_rows(row, next);
            }
            done += batch;
            slot = load_slot(&m, slot_begin + done, slot_count - done, lane);
        }
        let scale = inverse(running.sum);
        let index = query as usize * q_heads as usize + head as usize;
        let out = m.out.add(index * D + lane as usize * V);
        for i in 0..V / 2 {
            let pair = math::pack::<E>(running.o[2 * i] * scale, running.o[2 * i + 1] * scale);
            global::store_u32(out.add(2 * i).cast(), pair);
        }
        if lane == 0 && !m.lse.is_null() {
            let lse = (running.max + math::log2(running.sum)) * core::f32::consts::LN_2;
            global::store_f32(m.lse.add(index), lse);
        }
    }
}

#[inline(always)]
unsafe fn load_slot(m: &Merge, begin: u32, count: u32, lane: u32) -> u32 {
    if lane < count {
        // SAFETY: an entry of the row's.
        unsafe { global::load_u32(m.slots.add((begin + lane) as usize)) }
    } else {
        0
    }
}

/// The merge so far: every lane has all of the scalars and `V` values of the output.
struct Running<const V: usize> {
    max: f32,
    sum: f32,
    o: [f32; V],
}

impl<const V: usize> Running<V> {
    /// Takes in the next slots' log-sum-exps, one a lane; returns the lane's weight.
    #[inline(always)]
    unsafe fn raise(&mut self, lse: f32) -> f32 {
        let mut max = math::max(self.max, lse);
        for step in [16, 8, 4, 2, 1] {
            // SAFETY: the warp is whole.
            max = math::max(max, unsafe { warp::shuffle_xor_f32(max, step) });
        }
        let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let keep = math::exp2(self.max - reference);
        let weight = math::exp2(lse - reference);
        let mut total = weight;
        for step in [16, 8, 4, 2, 1] {
            // SAFETY: the warp is whole.
            total += unsafe { warp::shuffle_xor_f32(total, step) };
        }
        self.max = max;
        self.sum = self.sum * keep + total;
        for o in self.o.iter_mut() {
            *o *= keep;
        }
        weight
    }

    /// Adds the rows of slots `first` to `first + ROWS`, weighted by the lanes of those numbers; lanes past the last
    /// slot have weight 0.
    ///
    /// # Safety
    /// The warp is whole.
    #[inline(always)]
    unsafe fn add(&mut self, values: &[[f32; V]; ROWS], weight: f32, first: u32) {
        for (i, value) in values.iter().enumerate() {
            // SAFETY: the caller's.
            let share = unsafe { warp::shuffle_idx_f32(weight, first + i as u32) };
            for j in 0..V {
                self.o[j] = math::fma(share, value[j], self.o[j]);
            }
        }
    }
}

/// Rows asked for at a time; divides 32.
const ROWS: usize = 8;

#[inline(always)]
unsafe fn load_rows<const V: usize>(
    row: impl Fn(u32) -> *const f32,
    first: u32,
) -> [[f32; V]; ROWS] {
    // SAFETY: partial rows of the query's.
    core::array::from_fn(|i| unsafe { load_values(row(first + i as u32)) })
}

#[inline(always)]
unsafe fn load_values<const V: usize>(source: *const f32) -> [f32; V] {
    let mut values = [0.0; V];
    // SAFETY: the caller gives a row with `V` values of the lane's.
    unsafe {
        if V == 2 {
            let pair = global::load_v2_f32(source);
            values[0] = pair[0];
            values[1] = pair[1];
        } else {
            for i in 0..V / 4 {
                let four = global::load_v4_f32(source.add(4 * i));
                for j in 0..4 {
                    values[4 * i + j] = four[j];
                }
            }
        }
    }
    values
}
