//! Log-softmax of a row of logits, and its highest entries.
//!
//! A block has a row; thread `t` owns its chunks `t`, `t + 1024`, ... of four entries and knows the best of them. The
//! best of the block is the next winner, and only its owner's entries are read again, by the owner's warp.

use super::noise::{Noise, Sampling};
use crate::abi::NONE;
use crate::model::limits::{MAX_K, TOP_K_SHARED_BYTES, TOP_K_THREADS as THREADS};
use crate::softmax::Approximate;
use crate::softmax::Partial;
use device::math;
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::FULL_MASK;
use device::{global, thread, warp};

/// What a launch that ranks logits reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    /// `[rows, vocab]`.
    pub logits: *const f32,
    /// `[rows, k]`.
    pub ids: *mut u32,
    /// `[rows, k]`, natural logarithm.
    pub log_probs: *mut f32,
    /// Entries of a row.
    pub vocab: u32,
    /// Entries to give.
    pub k: u32,
}

/// The `k` highest entries of each row, highest first and the lower id first where they are equal, and their
/// logarithms of the row's softmax. A block a row.
///
/// NaNs rank below all numbers, and make all log-probabilities of their row NaN. So do `+inf` and a row of nothing but
/// `-inf`, for which softmax is not defined.
///
/// # Safety
/// The arrays are valid for their shapes, `logits` 16-byte aligned; `k` is from 1 to `vocab` and at most 64.
#[inline(always)]
pub unsafe fn log_softmax_top_k(t: TopK) {
    // SAFETY: the caller's.
    unsafe { rank(t, Noise::NONE) }
}

/// The same by logits with noise of the settings' temperature, log-probabilities without it: `k` samples without replacement
/// from the softmax of `logits / temperature`, in the order of drawing (Gumbel-top-k; Kool, van Hoof, Welling, arXiv
/// 1903.06059). With temperature 0 it is [`log_softmax_top_k`].
///
/// # Safety
/// As there; `s.streams` and `s.steps` are valid for a word a row.
#[inline(always)]
pub unsafe fn sample_top_k(t: TopK, s: Sampling) {
    // SAFETY: the caller's.
    unsafe { rank(t, s.noise(thread::block_idx_x())) }
}

/// Chunks that a thread asks for at a time.
pub(super) const BATCH: usize = 4;
/// Entries of a chunk.
pub(super) const WIDTH: u32 = 4;
pub(super) const WARPS: u32 = THREADS / warp::LANES;
const _: () = assert!(WARPS == warp::LANES && THREADS >= MAX_K);

/// Where warps leave things for each other, in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    /// `[warps]` pairs of maximum and sum.
    partials: Shared<[f32; 2]>,
    /// `[warps]` keys, each the warp's best.
    keys: Shared<u64>,
    /// `[k]` keys.
    pub(super) winners: Shared<u64>,
}

impl Scratch {
    #[inline(always)]
    pub(super) fn new() -> Self {
        const { assert!(16 * WARPS + 8 * MAX_K == TOP_K_SHARED_BYTES) }
        let partials: Shared<[f32; 2]> = dynamic_shared_mem();
        let keys = partials.at(WARPS).cast();
        Self { partials, keys, winners: keys.at(WARPS) }
    }
}

#[inline(always)]
unsafe fn rank<const NOISE: bool>(t: TopK, noise: Noise<NOISE>) {
    let row = thread::block_idx_x() as usize;
    let logits = t.logits.wrapping_add(row * t.vocab as usize);
    let entries = Entries { logits, vocab: t.vocab, first: 0, noise };
    let (index, scratch) = (thread::thread_idx_x(), Scratch::new());
    // SAFETY: all threads are here; winners are entries of the row.
    unsafe {
        let total = entries.win(t.k, scratch);
        if index < t.k {
            let id = id_of(scratch.winners.at(index).load());
            let logit = global::load_f32(entries.logits.add(id as usize));
            let to = row * t.k as usize + index as usize;
            global::store_u32(t.ids.add(to), id);
            global::store_f32(t.log_probs.add(to), log_prob(logit, total));
        }
    }
}

/// The logarithm of a logit's part of the softmax `total`.
#[inline(always)]
pub(super) fn log_prob(logit: f32, total: Partial) -> f32 {
    let s2 = logit * core::f32::consts::LOG2_E;
    // Not `lse2`, which is for rows that may be empty and takes NaN for that.
    (s2 - total.max - math::log2(total.sum)) * core::f32::consts::LN_2
}

/// A row, or a part of one, and the order of its entries.
#[derive(Clone, Copy)]
pub(super) struct Entries<const NOISE: bool> {
    pub(super) logits: *const f32,
    /// How many.
    pub(super) vocab: u32,
    /// The first one's id.
    pub(super) first: u32,
    pub(super) noise: Noise<NOISE>,
}

impl<const NOISE: bool> Entries<NOISE> {
    /// Leaves the keys of the `k` best entries in the scratch, best first and 0 where there are fewer; their part of the
    /// softmax, the same bits in all threads.
    ///
    /// # Safety
    /// All threads of the block call it together; the row is valid.
    #[inline(always)]
    pub(super) unsafe fn win(&self, k: u32, scratch: Scratch) -> Partial {
        let (index, lane) = (thread::thread_idx_x(), warp::lane_id());
        let own_warp = index / warp::LANES;
        // SAFETY: warps are whole and barriers reached by all; words are the scratch's; entries lie in the row.
        unsafe {
            let (mut best, partial) = self.scan();
            let (warp_best, partial) = (warp_max(best), warp_merge(partial));
            if lane == 0 {
                scratch.partials.at(own_warp).store([partial.max, partial.sum]);
                scratch.keys.at(own_warp).store(warp_best);
            }
            for place in 0..k {
                thread::sync_threads();
                let winner = warp_max(scratch.keys.at(lane).load());
                if index == 0 {
                    scratch.winners.at(place).store(winner);
                }
                let owner = (id_of(winner) - self.first) / WIDTH % THREADS;
                // All have read the keys.
                thread::sync_threads();
                if own_warp == owner / warp::LANES && place + 1 < k {
                    let first = owner + THREADS * lane;
                    let next = warp_max(self.best_below(winner, first, THREADS * warp::LANES));
                    if index == owner {
                        best = next;
                    }
                    let warp_best = warp_max(best);
                    if lane == 0 {
                        scratch.keys.at(own_warp).store(warp_best);
                    }
                }
            }
            let [max, sum] = scratch.partials.at(lane).load();
            warp_merge(Partial { max, sum })
        }
    }

    /// The best key of this thread's chunks, and their part of the softmax.
    ///
    /// # Safety
    /// The row is valid.
    #[inline(always)]
    unsafe fn scan(&self) -> (u64, Partial) {
        let (mut score, mut id, mut partial) = (f32::NEG_INFINITY, NONE, Partial::EMPTY);
        let first = thread::thread_idx_x();
        let mut chunk = first;
        while chunk * WIDTH < self.vocab {
            // SAFETY: the caller's.
            let batch: [[f32; WIDTH as usize]; BATCH] =
                core::array::from_fn(|i| unsafe { self.load(chunk + i as u32 * THREADS) });
            for (i, x) in batch.as_flattened().iter().enumerate() {
                let (i, within) = (i as u32 / WIDTH, i as u32 % WIDTH);
                let entry = self.first + (chunk + i * THREADS) * WIDTH + within;
                let noisy = self.noise.add(entry, *x);
                if noisy > score {
                    (score, id) = (noisy, entry);
                }
            }
            partial = partial.merge::<Approximate>(partial_of(&batch)).partial;
            chunk += BATCH as u32 * THREADS;
        }
        if id != NONE {
            return (key(score, id), partial);
        }
        // Nothing above -inf: what is there to rank is -inf and NaN.
        // SAFETY: the caller's.
        let best = unsafe { self.best_below(u64::MAX, first, THREADS) };
        (best, partial)
    }

    /// The best key below `limit` of every `step`th chunk from `first` on; 0 if there is none.
    ///
    /// # Safety
    /// The row is valid.
    #[inline(always)]
    unsafe fn best_below(&self, limit: u64, first: u32, step: u32) -> u64 {
        let mut best = 0;
        let mut chunk = first;
        while chunk * WIDTH < self.vocab {
            // SAFETY: the caller's.
            let x = unsafe { self.load(chunk) };
            for (i, x) in x.iter().enumerate() {
                let entry = chunk * WIDTH + i as u32;
                let id = self.first + entry;
                let key = key(self.noise.add(id, *x), id);
                if entry < self.vocab && key < limit {
                    best = larger(best, key);
                }
            }
            chunk += step;
        }
        best
    }

    /// A chunk's logits, `-inf` past the row's end.
    ///
    /// # Safety
    /// The row is valid.
    #[inline(always)]
    pub(super) unsafe fn load(&self, chunk: u32) -> [f32; WIDTH as usize] {
        let first = chunk * WIDTH;
        // SAFETY: entries below `vocab`; rows of whole chunks begin on multiples of 16 bytes.
        unsafe {
            if self.vocab.is_multiple_of(WIDTH) {
                if first < self.vocab {
                    return global::load_v4_f32(self.logits.add(first as usize));
                }
                return [f32::NEG_INFINITY; WIDTH as usize];
            }
            core::array::from_fn(|i| {
                let entry = first + i as u32;
                if entry < self.vocab {
                    global::load_f32(self.logits.add(entry as usize))
                } else {
                    f32::NEG_INFINITY
                }
            })
        }
    }
}

/// A number that orders entries by `score`, then by lower `id`; never 0.
#[inline(always)]
fn key(score: f32, id: u32) -> u64 {
    // Makes +0 of -0, which are equal.
    let bits = (score + 0.0).to_bits();
    let ordered = match (score.is_nan(), bits >> 31) {
        (true, _) => 0,
        (_, 0) => bits | 1 << 31,
        _ => !bits,
    };
    u64::from(ordered) << 32 | u64::from(!id)
}

#[inline(always)]
pub(super) fn id_of(key: u64) -> u32 {
    !(key as u32)
}

#[inline(always)]
fn larger(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// What a batch of logits adds to the softmax; a sum of NaN for one that softmax is not defined for.
#[inline(always)]
pub(super) fn partial_of(batch: &[[f32; WIDTH as usize]; BATCH]) -> Partial {
    let s2 = batch.map(|x| x.map(|x| x * core::f32::consts::LOG2_E));
    let mut max = f32::NEG_INFINITY;
    for value in s2.as_flattened() {
        max = math::max(max, *value);
    }
    let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = 0.0;
    for value in s2.as_flattened() {
        sum += math::exp2(*value - reference);
    }
    Partial { max, sum }
}

/// The largest key of the warp, in all lanes.
///
/// # Safety
/// The warp is whole.
#[inline(always)]
pub(super) unsafe fn warp_max(mut key: u64) -> u64 {
    for step in [16, 8, 4, 2, 1] {
        // SAFETY: the caller's.
        let other = unsafe { warp::warp_shuffle_xor(FULL_MASK, key, step) };
        key = larger(key, other);
    }
    key
}

/// The warp's partial sums as one, the same bits in all lanes.
///
/// # Safety
/// The warp is whole.
#[inline(always)]
pub(super) unsafe fn warp_merge(mut partial: Partial) -> Partial {
    for step in [16, 8, 4, 2, 1] {
        // SAFETY: the caller's.
        let other = unsafe {
            Partial {
                max: warp::warp_shuffle_xor(FULL_MASK, partial.max, step),
                sum: warp::warp_shuffle_xor(FULL_MASK, partial.sum, step),
            }
        };
        partial = partial.merge::<Approximate>(other).partial;
    }
    partial
}
