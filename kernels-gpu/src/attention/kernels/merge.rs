//! Merging partial results along the tree: one warp a row, which is a query and one of its heads. Lanes have dims; each
//! of them reads all log-sum-exps of the row, so that lanes need nothing of each other.

use super::sink::inverse;
use crate::abi::{MergeRow, NONE};
use crate::attention::tile::MERGE_WARPS;
use device::{Element, global, grid, math, thread, warp};

/// What a merge reads and writes; the partials as `attend` leaves them.
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

/// Merges one row. `V = D / 32` values a lane.
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
    // SAFETY: the caller's; partials are read after the launch that writes them.
    unsafe {
        let row = Row::load(&m, task / q_heads, task % q_heads);
        let slots = row.slots(&m, 0);
        // The grid must not end before the one it waits for, even if all its rows are unused.
        grid::wait_dependencies();
        row.finish::<E, D, V>(&m, &row.batch::<D, V>(&m, &slots, 0));
    }
}

/// Partial results that are asked for at a time.
const BATCH: usize = 8;

/// A query and head to merge.
#[derive(Clone, Copy)]
struct Row {
    query: u32,
    /// The query's row in the outputs.
    row: u32,
    slot_begin: u32,
    slot_count: u32,
    /// Query head.
    head: u32,
    /// Place of slot 0 in the partials.
    first: u32,
}

impl Row {
    /// Entry `index` of the plan's list, for query head `head`.
    #[inline(always)]
    unsafe fn load(m: &Merge, index: u32, head: u32) -> Self {
        let [query, slot_begin, slot_count, row] =
            // SAFETY: the caller's.
            unsafe { global::load_v4_u32(m.rows.add(index as usize).cast()) };
        Self {
            query,
            row,
            slot_begin,
            slot_count,
            head,
            first: head / m.group * m.partial_slots * m.group + head % m.group,
        }
    }

    /// The row's slots from number `begin` on, as many as a batch has.
    #[inline(always)]
    unsafe fn slots(&self, m: &Merge, begin: u32) -> [u32; BATCH] {
        core::array::from_fn(|i| {
            let number = begin + i as u32;
            if number < self.slot_count {
                // SAFETY: an entry of the row's.
                unsafe { global::load_u32(m.slots.add((self.slot_begin + number) as usize)) }
            } else {
                0
            }
        })
    }

    /// Asks for the partial results in `slots`, which are the row's from number `begin` on.
    #[inline(always)]
    unsafe fn batch<const D: usize, const V: usize>(
        &self,
        m: &Merge,
        slots: &[u32; BATCH],
        begin: u32,
    ) -> Batch<V> {
        let mut batch = Batch { lse: [f32::NEG_INFINITY; BATCH], values: [[0.0; V]; BATCH] };
        let lane = warp::lane_id() as usize;
        for i in 0..BATCH {
            if begin + (i as u32) < self.slot_count {
                let place = (self.first + slots[i] * m.group) as usize;
                // SAFETY: a partial result of the row's.
                unsafe {
                    batch.lse[i] = global::load_f32(m.partial_lse.add(place));
                    batch.values[i] = load_values(m.partial_o.add(place * D + lane * V));
                }
            }
        }
        batch
    }

    /// Merges all partial results, of which `batch` has the first, and stores the row.
    #[inline(always)]
    unsafe fn finish<E: Element, const D: usize, const V: usize>(
        &self,
        m: &Merge,
        batch: &Batch<V>,
    ) {
        if self.query == NONE {
            return;
        }
        let mut running = Running::<V> { max: f32::NEG_INFINITY, sum: 0.0, o: [0.0; V] };
        let mut begin = BATCH as u32;
        // SAFETY: the caller's; the row is the warp's alone.
        unsafe {
            let mut slots = self.slots(m, begin);
            running.add(batch);
            while begin < self.slot_count {
                let batch = self.batch::<D, V>(m, &slots, begin);
                begin += BATCH as u32;
                slots = self.slots(m, begin);
                running.add(&batch);
            }
            let index = self.row as usize * (m.kv_heads * m.group) as usize + self.head as usize;
            let lane = warp::lane_id();
            running.store::<E>(m.out.add(index * D + lane as usize * V));
            if lane == 0 && !m.lse.is_null() {
                let lse = (running.max + math::log2(running.sum)) * core::f32::consts::LN_2;
                global::store_f32(m.lse.add(index), lse);
            }
        }
    }
}

/// Partial results of a row, in the order of its slots: every lane has the log-sum-exps and `V` values of each. Past the
/// last slot there is nothing: minus infinity, and zeros.
#[derive(Clone, Copy)]
struct Batch<const V: usize> {
    lse: [f32; BATCH],
    values: [[f32; V]; BATCH],
}

/// The merge so far: every lane has all of the scalars and `V` values of the output.
struct Running<const V: usize> {
    max: f32,
    sum: f32,
    o: [f32; V],
}

impl<const V: usize> Running<V> {
    /// Takes in further partial results.
    #[inline(always)]
    fn add(&mut self, batch: &Batch<V>) {
        let mut max = self.max;
        for lse in batch.lse {
            max = math::max(max, lse);
        }
        let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let keep = math::exp2(self.max - reference);
        self.max = max;
        self.sum *= keep;
        for o in self.o.iter_mut() {
            *o *= keep;
        }
        for i in 0..BATCH {
            let weight = math::exp2(batch.lse[i] - reference);
            self.sum += weight;
            for j in 0..V {
                self.o[j] = math::fma(weight, batch.values[i][j], self.o[j]);
            }
        }
    }

    /// Stores the lane's values at `out`, normalised.
    #[inline(always)]
    unsafe fn store<E: Element>(&self, out: *mut u16) {
        let scale = inverse(self.sum);
        let pair = |i: usize| math::pack::<E>(self.o[2 * i] * scale, self.o[2 * i + 1] * scale);
        // SAFETY: the caller gives a place for `V` values.
        unsafe {
            match V {
                2 => global::store_u32(out.cast(), pair(0)),
                4 => global::store_v2_u32(out.cast(), [pair(0), pair(1)]),
                _ => global::store_v4_u32(out.cast(), core::array::from_fn(pair)),
            }
        }
    }
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
