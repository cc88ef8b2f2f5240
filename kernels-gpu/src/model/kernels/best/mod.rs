//! The best continuations of many rows together, as beam search takes them: the highest of `score + log_softmax(row)`.
//!
//! A row is *segments* of 512 entries. One pass over all logits leaves each row's softmax and each segment's best. The
//! `k` best segments hold the `k` best entries: each of them has one that is as good as the last of them. So the rest is
//! done on keys that are few: the `k`th highest key of all segments is found digit by digit, the entries of segments from
//! there on that are as good become candidates, their `k`th highest is found in the same way, and what is as good goes
//! out. Keys differ from each other, since an index is their lower part, so what is chosen depends on no order.

mod state;

use super::noise::Noise;
use super::rank::{BATCH, Entries, WARPS, WIDTH, partial_of, warp_merge};
use crate::model::limits::{BEST_SEGMENT as SEGMENT, BEST_STATE_WORDS, TOP_K_THREADS};
use crate::softmax::{Approximate, Partial};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::{FULL_MASK, LANES};
use device::{global, math, thread, warp};

pub use state::{BestState, best_count};
use state::{CANDIDATES, RESULTS, for_all, places};

/// Entries that a lane has of a segment.
const OWN: usize = (SEGMENT / LANES) as usize;
const _: () = assert!(OWN == BATCH * WIDTH as usize);

/// Rows, their scores, and what is found of each.
#[derive(Clone, Copy, Debug)]
pub struct BestRows {
    /// `[rows, vocab]`.
    pub logits: *const f32,
    /// `[rows]`; a row of -inf takes no part.
    pub scores: *const f32,
    /// `[rows, 2]`: the largest base-2 logit and the logarithm of the softmax's sum relative to it.
    pub totals: *mut f32,
    /// Entries of a row.
    pub vocab: u32,
    /// Low bits of a segment's key that are its number.
    pub segment_bits: u32,
    /// The same of an entry's key.
    pub entry_bits: u32,
}

/// Leaves each row's softmax in `rows.totals`, a key of each segment's best in `keys`, `[rows, segments]`, and zeros in
/// the state. A block a row.
///
/// # Safety
/// The arrays are valid for their shapes, `logits` 16-byte aligned; a row has at most
/// [`BEST_MAX_SEGMENTS`](crate::model::limits::BEST_MAX_SEGMENTS) segments, and keys have room for their numbers.
#[inline(always)]
pub unsafe fn best_rows(rows: BestRows, keys: *mut u64, state: *mut u32) {
    let (row, index, lane) = (thread::block_idx_x(), thread::thread_idx_x(), warp::lane_id());
    let scratch: Shared<[f32; 2]> = dynamic_shared_mem();
    let maxima: Shared<f32> = scratch.at(WARPS).cast();
    let count = segments(rows.vocab);
    // SAFETY: warps are whole and barriers reached by all; words are the scratch's and the arrays'.
    unsafe {
        let mut word = row * TOP_K_THREADS + index;
        while word < BEST_STATE_WORDS {
            global::store_u32(state.add(word as usize), 0);
            word += thread::grid_dim_x() * TOP_K_THREADS;
        }
        let mut partial = Partial::EMPTY;
        let mut segment = index / LANES;
        while segment < count {
            let own = partial_of(&rows.load(row, segment));
            partial = partial.merge::<Approximate>(own).partial;
            let max = warp_largest(own.max);
            if lane == 0 {
                maxima.at(segment).store(max);
            }
            segment += WARPS;
        }
        let partial = warp_merge(partial);
        if lane == 0 {
            scratch.at(index / LANES).store([partial.max, partial.sum]);
        }
        thread::sync_threads();
        let [max, sum] = scratch.at(lane).load();
        let total = warp_merge(Partial { max, sum });
        let total = [total.max, math::log2(total.sum)];
        if index == 0 {
            global::store_v2_f32(rows.totals.add(2 * row as usize), total);
        }
        let score = global::load_f32(rows.scores.add(row as usize));
        let mut segment = index;
        while segment < count {
            let best = ordered(value(maxima.at(segment).load(), total, score));
            let number = row * count + segment;
            global::store_u64(keys.add(number as usize), key(best, number, rows.segment_bits));
            segment += TOP_K_THREADS;
        }
    }
}

/// Makes candidates of the entries of the best `k` segments that are as good as the best of the last of them: their
/// keys, in any order.
///
/// # Safety
/// As [`best_rows`] left things and [`best_count`] has counted all digits; `candidates` has room for all entries of `k`
/// segments.
#[inline(always)]
pub unsafe fn best_collect(
    rows: BestRows,
    keys: *const u64,
    len: u32,
    state: BestState,
    candidates: *mut u64,
) {
    // SAFETY: the caller's; warps are whole and barriers reached by all.
    unsafe {
        let least = state.above(0).prefix;
        let count = segments(rows.vocab);
        for_all(len, |index, exists| {
            let key = if exists { global::load_u64(keys.add(index as usize)) } else { 0 };
            let found = key >= least && key >> rows.segment_bits != 0;
            let mut left = warp::warp_vote_ballot(FULL_MASK, found);
            while left != 0 {
                let leader = left.trailing_zeros();
                left &= left - 1;
                let number = warp::warp_shuffle_idx(FULL_MASK, index, leader);
                rows.collect(number, count, least, state, candidates);
            }
        });
    }
}

/// Writes the candidates from the `k`th highest on, in any order: row times `vocab` plus entry, and the natural logarithm
/// of its part of the row's softmax. How many says the state.
///
/// # Safety
/// As [`best_collect`] left things and [`best_count`] has counted all digits; `entries` and `log_probs` have room for `k`.
#[inline(always)]
pub unsafe fn best_emit(
    rows: BestRows,
    candidates: *const u64,
    state: BestState,
    entries: *mut u32,
    log_probs: *mut f32,
) {
    // SAFETY: the caller's; warps are whole and barriers reached by all.
    unsafe {
        let least = state.above(0).prefix;
        for_all(state.len(0), |index, exists| {
            let key = if exists { global::load_u64(candidates.add(index as usize)) } else { 0 };
            let found = exists && key >= least;
            let place = places(state.words.add(RESULTS as usize), u32::from(found));
            if found {
                let entry = number(key, rows.entry_bits);
                let total = rows.total(entry / rows.vocab);
                let logit = global::load_f32(rows.logits.add(entry as usize));
                let s2 = logit * core::f32::consts::LOG2_E;
                global::store_u32(entries.add(place as usize), entry);
                global::store_f32(log_probs.add(place as usize), log_prob(s2, total));
            }
        });
    }
}

/// Segments of a row.
#[inline(always)]
fn segments(vocab: u32) -> u32 {
    vocab.div_ceil(SEGMENT)
}

impl BestRows {
    /// A lane's logits of a segment, -inf past the row's end.
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn load(&self, row: u32, segment: u32) -> [[f32; WIDTH as usize]; BATCH] {
        let logits = self.logits.wrapping_add(row as usize * self.vocab as usize);
        let entries = Entries { logits, vocab: self.vocab, first: 0, noise: Noise::NONE };
        let first = segment * (SEGMENT / WIDTH) + warp::lane_id();
        // SAFETY: the caller's.
        core::array::from_fn(|i| unsafe { entries.load(first + i as u32 * LANES) })
    }

    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn total(&self, row: u32) -> [f32; 2] {
        // SAFETY: the caller's.
        unsafe { global::load_v2_f32(self.totals.add(2 * row as usize)) }
    }

    /// Makes candidates of a segment's entries; by a warp.
    ///
    /// # Safety
    /// As [`best_collect`]; the segment exists, and the warp is whole.
    #[inline(always)]
    unsafe fn collect(
        &self,
        segment: u32,
        count: u32,
        least: u64,
        state: BestState,
        candidates: *mut u64,
    ) {
        let (row, part) = (segment / count, segment % count);
        // SAFETY: the caller's.
        unsafe {
            let total = self.total(row);
            let score = global::load_f32(self.scores.add(row as usize));
            let batch = self.load(row, part);
            let best: [u32; OWN] = core::array::from_fn(|i| {
                let s2 = batch[i / WIDTH as usize][i % WIDTH as usize] * core::f32::consts::LOG2_E;
                ordered(value(s2, total, score))
            });
            let keeps =
                best.map(|best| best != 0 && key(best, segment, self.segment_bits) >= least);
            let mut own = 0;
            for keep in keeps {
                own += u32::from(keep);
            }
            let mut place = places(state.words.add(CANDIDATES as usize), own);
            let first = row * self.vocab + part * SEGMENT + warp::lane_id() * WIDTH;
            for i in 0..OWN {
                if keeps[i] {
                    let (chunk, within) = (i as u32 / WIDTH, i as u32 % WIDTH);
                    let entry = first + chunk * LANES * WIDTH + within;
                    let key = key(best[i], entry, self.entry_bits);
                    global::store_u64(candidates.add(place as usize), key);
                    place += 1;
                }
            }
        }
    }
}

/// The warp's largest value, in all lanes.
///
/// # Safety
/// The warp is whole.
#[inline(always)]
unsafe fn warp_largest(mut value: f32) -> f32 {
    for step in [16, 8, 4, 2, 1] {
        // SAFETY: the caller's.
        value = math::max(value, unsafe { warp::warp_shuffle_xor(FULL_MASK, value, step) });
    }
    value
}

/// The natural logarithm of the part of a softmax that a base-2 logit has.
#[inline(always)]
fn log_prob(s2: f32, [max, log_sum]: [f32; 2]) -> f32 {
    (s2 - max - log_sum) * core::f32::consts::LN_2
}

/// What entries are ranked by: no less for a larger logit, whatever is rounded.
#[inline(always)]
fn value(s2: f32, total: [f32; 2], score: f32) -> f32 {
    log_prob(s2, total) + score
}

/// A number that orders values; 0 for NaN and -inf, which take no part.
#[inline(always)]
fn ordered(value: f32) -> u32 {
    // Makes +0 of -0, which are equal.
    let bits = (value + 0.0).to_bits();
    match (value > f32::NEG_INFINITY, bits >> 31) {
        (false, _) => 0,
        (_, 0) => bits | 1 << 31,
        _ => !bits,
    }
}

/// A number that orders by value, then by lower `number`, of `bits` bits.
#[inline(always)]
fn key(ordered: u32, number: u32, bits: u32) -> u64 {
    u64::from(ordered) << bits | ((1u64 << bits) - 1 - u64::from(number))
}

/// The number in a key.
#[inline(always)]
fn number(key: u64, bits: u32) -> u32 {
    let mask = (1u64 << bits) - 1;
    (mask - (key & mask)) as u32
}
