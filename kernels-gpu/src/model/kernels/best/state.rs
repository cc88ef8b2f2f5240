//! The search for the `k`th highest of many keys, a digit a launch, and lists that warps add to.

use crate::model::limits::{
    BEST_BINS as BINS, BEST_DIGIT as DIGIT, BEST_RESULTS, BEST_STATE_WORDS, BEST_THREADS as THREADS,
};
use device::atomic::{self, Order, Scope};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::{FULL_MASK, LANES};
use device::{global, thread, warp};

/// Bins that a thread adds up.
const OWN_BINS: usize = (BINS / THREADS) as usize;
const _: () = assert!(OWN_BINS == 8 && BINS == 1 << DIGIT);
/// Digits that are counted for a warp before its lanes count by themselves.
const SHARED_DIGITS: u32 = 4;

/// The counts of a search for the `k`th highest key.
#[derive(Clone, Copy, Debug)]
pub struct BestState {
    /// `[BEST_STATE_WORDS]`: four words for each digit and what is counted, then the bins of each digit.
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
pub(super) const CANDIDATES: u32 = COUNTS;
pub(super) const RESULTS: u32 = BEST_RESULTS;
const _: () = assert!(RESULTS == COUNTS + 1);
const FIRST_BIN: u32 = COUNTS + 32;
const _: () = assert!(FIRST_BIN + 12 * BINS == BEST_STATE_WORDS);

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

/// Digits of the `k`th highest key, and how many of the keys that have them are wanted.
#[derive(Clone, Copy)]
pub(super) struct Above {
    pub(super) prefix: u64,
    wanted: u32,
}

impl BestState {
    /// `len`, or where that is 0 the candidates that there are.
    ///
    /// # Safety
    /// The state is valid.
    #[inline(always)]
    pub(super) unsafe fn len(&self, len: u32) -> u32 {
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
    pub(super) unsafe fn above(&self, k: u32) -> Above {
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
pub(super) unsafe fn places(counter: *mut u32, own: u32) -> u32 {
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

/// Calls `f` with numbers from 0 on and whether they are below `len`: the whole grid walks side by side, and the lanes of
/// a warp together.
#[inline(always)]
pub(super) fn for_all(len: u32, f: impl Fn(u32, bool)) {
    let mut first = thread::block_idx_x() * THREADS + thread::thread_idx_x() / LANES * LANES;
    while first < len {
        let index = first + warp::lane_id();
        f(index, index < len);
        first += thread::grid_dim_x() * THREADS;
    }
}
