//! The best continuations of many rows together, as beam search takes them: the highest of `score + log_softmax(row)`.
//!
//! A row is *segments* of 512 entries. One pass over all logits leaves each row's softmax and each segment's best. The
//! `k` best segments hold the `k` best entries: each of them has one that is as good as the last of them. So the rest is
//! done on keys that are few: the `k`th highest key of all segments is found digit by digit, the entries of segments from
//! there on that are as good become candidates, their `k`th highest is found in the same way, and what is as good goes
//! out. Keys differ from each other, since an index is their lower part, so what is chosen depends on no order.

use super::noise::Noise;
use super::rank::{BATCH, Entries, WARPS, WIDTH, partial_of, warp_merge};
use crate::model::limits::{
    BEST_BINS as BINS, BEST_DIGIT as DIGIT, BEST_RESULTS, BEST_SEGMENT as SEGMENT,
    BEST_STATE_WORDS, BEST_THREADS as THREADS, TOP_K_THREADS,
};
use crate::softmax::{Approximate, Partial};
use device::atomic::{self, Order, Scope};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::{FULL_MASK, LANES};
use device::{global, math, thread, warp};

/// Entries that a lane has of a segment.
const OWN: usize = (SEGMENT / LANES) as usize;
const _: () = assert!(OWN == BATCH * WIDTH as usize);
/// Bins that a thread adds up.
const OWN_BINS: usize = (BINS / THREADS) as usize;
const _: () = assert!(OWN_BINS == 8 && BINS == 1 << DIGIT);
/// Digits that are counted for a warp before its lanes count by themselves.
const SHARED_DIGITS: u32 = 4;

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

/// The counts of a search for the `k`th highest key.
#[derive(Clone, Copy, Debug)]
pub struct BestState {
    /// `[BEST_STATE_WORDS]`: [`Slot`]s, then the bins of each digit.
    pub words: *mut u32,
    /// Which of its digits is this launch's, or the first after all.
    pub digit: u32,
    /// The first digit of this search.
    pub first: u32,
    /// Bits of a key below the digit.
    pub shift: u32,
    /// Bits of the digit.
    pub width: u32,
    /// Bits of the digit before it.
    pub width_before: u32,
}

/// A word of the state before the bins: four for each digit, of which the first ones are the digits above it, high and
/// low half, and how many keys are wanted of those that have them.
const COUNTS: u32 = 4 * 16;
/// Words of the state that count candidates, and results.
const CANDIDATES: u32 = COUNTS;
const RESULTS: u32 = BEST_RESULTS;
const _: () = assert!(RESULTS == COUNTS + 1);
const FIRST_BIN: u32 = COUNTS + 32;
const _: () = assert!(FIRST_BIN + 12 * BINS == BEST_STATE_WORDS);

/// Leaves each row's softmax in `rows.totals`, a key of each segment's best in `keys`, `[rows, segments]`, and zeros in
/// the state. A block a row.
///
/// # Safety
/// The arrays are valid for their shapes, `logits` 16-byte aligned; `rows` has [`segments`] of at most
/// [`BEST_MAX_SEGMENTS`](crate::model::limits::BEST_MAX_SEGMENTS), and keys have room for their numbers.
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

/// Counts a digit of the keys that have the digits above it which the `k`th highest key has. All of the grid walks
/// together over `keys`: `len` of them, or as many as the state's word `len_at` says where `len` is 0.
///
/// # Safety
/// The arrays are valid for their shapes; digits above were counted by launches before.
#[inline(always)]
pub unsafe fn best_count(keys: *const u64, len: u32, k: u32, state: BestState) {
    // SAFETY: the caller's; warps are whole and barriers reached by all.
    unsafe {
        let len = state.len(len);
        let above = state.above(if k < len { k } else { len });
        if thread::block_idx_x() == 0 && thread::thread_idx_x() == 0 {
            state.keep(above);
        }
        let bins = state.bins(state.digit);
        for_all(len, |index, exists| {
            // SAFETY: as above.
            let key = if exists { global::load_u64(keys.add(index as usize)) } else { 0 };
            let rest = key >> state.shift;
            let counts = exists && rest >> state.width == above.prefix;
            count(bins, rest as u32 & ((1 << state.width) - 1), counts);
        });
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

/// Digits of the `k`th highest key, and how many of the keys that have them are wanted.
#[derive(Clone, Copy)]
struct Above {
    prefix: u64,
    wanted: u32,
}

impl BestState {
    /// `len`, or where that is 0 the candidates that there are.
    ///
    /// # Safety
    /// The state is valid.
    #[inline(always)]
    unsafe fn len(&self, len: u32) -> u32 {
        if len > 0 {
            return len;
        }
        // SAFETY: the caller's.
        unsafe { global::load_u32(self.words.add(CANDIDATES as usize)) }
    }

    #[inline(always)]
    fn bins(&self, digit: u32) -> *mut u32 {
        self.words.wrapping_add((FIRST_BIN + digit * BINS) as usize)
    }

    #[inline(always)]
    fn slot(&self, digit: u32) -> *mut u32 {
        self.words.wrapping_add(4 * digit as usize)
    }

    /// The digits above this launch's, of which the last was counted by the launch before; `k` keys are wanted in all.
    ///
    /// # Safety
    /// All threads of the block call it together, once; the state is valid.
    #[inline(always)]
    unsafe fn above(&self, k: u32) -> Above {
        if self.digit == self.first {
            return Above { prefix: 0, wanted: k };
        }
        let before = self.digit - 1;
        // SAFETY: the caller's.
        unsafe {
            let [high, low, wanted, _] = global::load_v4_u32(self.slot(before));
            let [digit, rest] = find(self.bins(before), wanted);
            let prefix = u64::from(high) << 32 | u64::from(low);
            let prefix = prefix << self.width_before | u64::from(digit);
            Above { prefix, wanted: rest }
        }
    }

    /// # Safety
    /// The state is valid.
    #[inline(always)]
    unsafe fn keep(&self, above: Above) {
        let halves = [(above.prefix >> 32) as u32, above.prefix as u32];
        // SAFETY: the caller's.
        unsafe {
            global::store_v4_u32(self.slot(self.digit), [halves[0], halves[1], above.wanted, 0]);
        }
    }
}

/// The digit at which counts, added up from the highest digit on, reach `wanted`, and what is wanted of it then. 0 and 0
/// if nothing is wanted.
///
/// # Safety
/// All threads of the block call it together, once; the bins are valid.
#[inline(always)]
unsafe fn find(bins: *const u32, wanted: u32) -> [u32; 2] {
    let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
    let scratch: Shared<u32> = dynamic_shared_mem();
    const FOUND: u32 = THREADS / LANES;
    // SAFETY: warps are whole and barriers reached by all; words are the scratch's.
    unsafe {
        // A thread's bins, the first thread's the highest.
        let first = BINS - (index + 1) * OWN_BINS as u32;
        let [low, high] = [0, 4].map(|i| global::load_v4_u32(bins.add((first + i) as usize)));
        let own = [high[3], high[2], high[1], high[0], low[3], low[2], low[1], low[0]];
        let mut sum = 0;
        for count in own {
            sum += count;
        }
        let to = running(sum);
        if lane == LANES - 1 {
            scratch.at(index / LANES).store(to);
        }
        if index < 2 {
            scratch.at(FOUND + index).store(0);
        }
        thread::sync_threads();
        let mut before = to - sum;
        for warp in 0..THREADS / LANES {
            let others = scratch.at(warp).load();
            before += if warp < index / LANES { others } else { 0 };
        }
        if before < wanted && wanted <= before + sum {
            let mut at = before;
            for (i, count) in own.into_iter().enumerate() {
                if at < wanted && wanted <= at + count {
                    scratch.at(FOUND).store(first + OWN_BINS as u32 - 1 - i as u32);
                    scratch.at(FOUND + 1).store(wanted - at);
                }
                at += count;
            }
        }
        thread::sync_threads();
        [scratch.at(FOUND).load(), scratch.at(FOUND + 1).load()]
    }
}

/// Counts `digit` of the lanes that have one. Keys have few first digits, so those that lanes have in common are added
/// together.
///
/// # Safety
/// The warp is whole; the bins are valid.
#[inline(always)]
unsafe fn count(bins: *mut u32, digit: u32, counts: bool) {
    let lane = warp::lane_id();
    // SAFETY: the caller's.
    unsafe {
        let mut left = warp::warp_vote_ballot(FULL_MASK, counts);
        let mut round = 0;
        while left != 0 && round < SHARED_DIGITS {
            let leader = left.trailing_zeros();
            let theirs = warp::warp_shuffle_idx(FULL_MASK, digit, leader);
            let same = warp::warp_vote_ballot(FULL_MASK, counts && digit == theirs);
            if lane == leader {
                add(bins.add(digit as usize), same.count_ones());
            }
            left &= !same;
            round += 1;
        }
        if left >> lane & 1 == 1 {
            add(bins.add(digit as usize), 1);
        }
    }
}

/// # Safety
/// The address is valid.
#[inline(always)]
unsafe fn add(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's.
    unsafe { atomic::fetch_add_u32(to, value, Order::Relaxed, Scope::Device) }
}

/// The first of `own` places of a list that this lane gets; `counter` counts all that are taken.
///
/// # Safety
/// The warp is whole; the counter is valid.
#[inline(always)]
unsafe fn places(counter: *mut u32, own: u32) -> u32 {
    // SAFETY: the caller's.
    unsafe {
        let to = running(own);
        let mut first = 0;
        if warp::lane_id() == LANES - 1 && to > 0 {
            first = add(counter, to);
        }
        warp::warp_shuffle_idx(FULL_MASK, first, LANES - 1) + to - own
    }
}

/// The sum over this lane and those before it.
///
/// # Safety
/// The warp is whole.
#[inline(always)]
unsafe fn running(own: u32) -> u32 {
    let lane = warp::lane_id();
    let mut to = own;
    for step in [1, 2, 4, 8, 16] {
        // SAFETY: the caller's; lanes are read that are there.
        let below =
            unsafe { warp::warp_shuffle_idx(FULL_MASK, to, lane.wrapping_sub(step) % LANES) };
        to += if lane >= step { below } else { 0 };
    }
    to
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

/// Calls `f` with numbers from 0 on and whether they are below `len`: the whole grid walks side by side, and the lanes of
/// a warp together.
#[inline(always)]
fn for_all(len: u32, f: impl Fn(u32, bool)) {
    let mut first = thread::block_idx_x() * THREADS + thread::thread_idx_x() / LANES * LANES;
    while first < len {
        let index = first + warp::lane_id();
        f(index, index < len);
        first += thread::grid_dim_x() * THREADS;
    }
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
