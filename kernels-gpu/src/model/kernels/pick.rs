//! Tokens of a row of logits that are drawn with given numbers, or that are given themselves.
//!
//! A block has a row, each warp a run of its chunks. The running sum that decides a draw goes over lower ids first:
//! warps' sums tell in which run it is, and that warp's part of the row is read once more.

use super::noise::Noise;
use super::rank::{BATCH, Entries, WARPS, WIDTH, log_prob, partial_of, warp_merge};
use crate::softmax::{Approximate, Partial};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::{FULL_MASK, LANES};
use device::{global, math, thread, warp};

/// What a launch that picks tokens reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    /// `[rows, vocab]`.
    pub logits: *const f32,
    /// `[blocks, 4]`: the row, the first of its `asks` and how many, and the bits of `1 / temperature`, or 0 for asks
    /// that are tokens themselves.
    pub rows: *const u32,
    /// A token, or the bits of a number from 0 to below 1 that draws one.
    pub asks: *const u32,
    /// As many as `asks`.
    pub ids: *mut u32,
    /// As many, natural logarithm.
    pub log_probs: *mut f32,
    /// Entries of a row.
    pub vocab: u32,
}

/// Answers each ask of each row: the token, and its logarithm of the row's softmax without the temperature. A number `u`
/// draws the first token at which the sum of the softmax of `logits / temperature` over it and all lower ids is more
/// than `u`, and never one without probability. A block a row.
///
/// Log-probabilities of a row without a softmax (NaN, `+inf`, nothing but `-inf`) are NaN, and it draws some token.
///
/// # Safety
/// The arrays are valid for their shapes, `logits` and `rows` 16-byte aligned; rows exist, tokens are below `vocab`.
#[inline(always)]
pub unsafe fn pick_tokens(p: Pick) {
    // SAFETY: the caller's; warps are whole and barriers reached by all.
    unsafe {
        let record = p.rows.add(4 * thread::block_idx_x() as usize);
        let [row, first, count, scale] = global::load_v4_u32(record);
        let logits = p.logits.add(row as usize * p.vocab as usize);
        let entries = Entries { logits, vocab: p.vocab, first: 0, noise: Noise::NONE };
        let part = Part::own(p.vocab);
        let total = part.softmax(&entries);
        let scale = f32::from_bits(scale);
        let asks = Asks { first, count, total };
        if scale == 0.0 {
            asks.answer(&p, &entries, [thread::thread_idx_x(), WARPS * LANES], true, |ask| ask);
            return;
        }
        let weights = Weights { entries, scale, max: total.max };
        let sums: Shared<f32> = dynamic_shared_mem::<[f32; 2]>().at(WARPS).cast();
        part.sum(&weights, sums);
        thread::sync_threads();
        let run = Running::over(sums.at(warp::lane_id()).load());
        let share = [thread::thread_idx_x() / LANES, WARPS];
        let draw = |ask| run.draw(&weights, f32::from_bits(ask));
        asks.answer(&p, &entries, share, warp::lane_id() == 0, draw);
    }
}

/// A row's asks, and its softmax.
#[derive(Clone, Copy)]
struct Asks {
    first: u32,
    count: u32,
    total: Partial,
}

impl Asks {
    /// Answers every `step`th ask from `begin` on with the token that `token` says; one thread of those that share an
    /// ask `stores`.
    ///
    /// # Safety
    /// As [`pick_tokens`].
    #[inline(always)]
    unsafe fn answer(
        self,
        p: &Pick,
        entries: &Entries<false>,
        [begin, step]: [u32; 2],
        stores: bool,
        token: impl Fn(u32) -> u32,
    ) {
        let mut at = begin;
        while at < self.count {
            let place = (self.first + at) as usize;
            // SAFETY: the caller's.
            unsafe {
                let id = token(global::load_u32(p.asks.add(place)));
                let logit = global::load_f32(entries.logits.add(id as usize));
                if stores {
                    global::store_u32(p.ids.add(place), id);
                    global::store_f32(p.log_probs.add(place), log_prob(logit, self.total));
                }
            }
            at += step;
        }
    }
}

/// The chunks of a warp: `begin` to `end`.
#[derive(Clone, Copy)]
struct Part {
    begin: u32,
    end: u32,
}

impl Part {
    #[inline(always)]
    fn of(vocab: u32, warp: u32) -> Self {
        let chunks = vocab.div_ceil(WIDTH);
        let share = chunks.div_ceil(WARPS);
        let (begin, end) = (warp * share, (warp + 1) * share);
        Self { begin, end: if end < chunks { end } else { chunks } }
    }

    #[inline(always)]
    fn own(vocab: u32) -> Self {
        Self::of(vocab, thread::thread_idx_x() / LANES)
    }

    /// The row's softmax, the same bits in all threads. Uses the first `WARPS` pairs of shared memory.
    ///
    /// # Safety
    /// All threads of the block call it together; the row is valid.
    #[inline(always)]
    unsafe fn softmax(self, entries: &Entries<false>) -> Partial {
        let lane = warp::lane_id();
        let mut partial = Partial::EMPTY;
        let mut chunk = self.begin + lane;
        let scratch: Shared<[f32; 2]> = dynamic_shared_mem();
        // SAFETY: the caller's.
        unsafe {
            while chunk < self.end {
                let batch: [[f32; WIDTH as usize]; BATCH] = core::array::from_fn(|i| {
                    let chunk = chunk + i as u32 * LANES;
                    if chunk < self.end {
                        entries.load(chunk)
                    } else {
                        [f32::NEG_INFINITY; WIDTH as usize]
                    }
                });
                partial = partial.merge::<Approximate>(partial_of(&batch)).partial;
                chunk += BATCH as u32 * LANES;
            }
            let partial = warp_merge(partial);
            if lane == 0 {
                let own_warp = thread::thread_idx_x() / LANES;
                scratch.at(own_warp).store([partial.max, partial.sum]);
            }
            thread::sync_threads();
            let [max, sum] = scratch.at(lane).load();
            warp_merge(Partial { max, sum })
        }
    }

    /// Stores the sum of the warp's weights.
    ///
    /// # Safety
    /// The warp is whole; `sums` has a word a warp; the row is valid.
    #[inline(always)]
    unsafe fn sum(self, weights: &Weights, sums: Shared<f32>) {
        let mut sum = 0.0;
        let mut chunk = self.begin + warp::lane_id();
        // SAFETY: the caller's.
        unsafe {
            while chunk < self.end {
                let [a, b, c, d] = weights.load(chunk);
                sum += (a + b) + (c + d);
                chunk += LANES;
            }
            let running = Running::over(sum);
            if warp::lane_id() == LANES - 1 {
                sums.at(thread::thread_idx_x() / LANES).store(running.to);
            }
        }
    }
}

/// What entries weigh in a draw.
#[derive(Clone, Copy)]
struct Weights {
    entries: Entries<false>,
    /// One over the temperature.
    scale: f32,
    /// The largest base-2 logit.
    max: f32,
}

impl Weights {
    /// # Safety
    /// The row is valid.
    #[inline(always)]
    unsafe fn load(&self, chunk: u32) -> [f32; WIDTH as usize] {
        // SAFETY: the caller's.
        let x = unsafe { self.entries.load(chunk) };
        x.map(|x| math::exp2((x * core::f32::consts::LOG2_E - self.max) * self.scale))
    }
}

/// A warp's running sum: up to and including this lane's value, and before it.
#[derive(Clone, Copy)]
struct Running {
    own: f32,
    before: f32,
    to: f32,
}

impl Running {
    /// # Safety
    /// The warp is whole.
    #[inline(always)]
    unsafe fn over(own: f32) -> Self {
        let lane = warp::lane_id();
        let mut to = own;
        // SAFETY: the caller's; lanes are read that are there.
        unsafe {
            for step in [1, 2, 4, 8, 16] {
                let below = warp::warp_shuffle_idx(FULL_MASK, to, lane.wrapping_sub(step) % LANES);
                to += if lane >= step { below } else { 0.0 };
            }
            let before = warp::warp_shuffle_idx(FULL_MASK, to, lane.wrapping_sub(1) % LANES);
            Self { own, before: if lane == 0 { 0.0 } else { before }, to }
        }
    }

    /// The first lane at which the sum is more than `target`, and true; or where there is none the last of any weight,
    /// `LANES` if there is no weight at all.
    ///
    /// # Safety
    /// The warp is whole.
    #[inline(always)]
    unsafe fn first_over(self, target: f32) -> (u32, bool) {
        // SAFETY: the caller's.
        let (over, any) = unsafe {
            (
                warp::warp_vote_ballot(FULL_MASK, self.to > target && self.own > 0.0),
                warp::warp_vote_ballot(FULL_MASK, self.own > 0.0),
            )
        };
        match (over, any) {
            (0, 0) => (LANES, false),
            (0, _) => (LANES - 1 - any.leading_zeros(), false),
            _ => (over.trailing_zeros(), true),
        }
    }

    /// The token that `at` draws: these are the sums of the block's warps.
    ///
    /// # Safety
    /// The warp is whole; the row is valid.
    #[inline(always)]
    unsafe fn draw(self, weights: &Weights, at: f32) -> u32 {
        let lane = warp::lane_id();
        // SAFETY: the caller's; all lanes take the same way.
        unsafe {
            let total = warp::warp_shuffle_idx(FULL_MASK, self.to, LANES - 1);
            let target = at * total;
            // Where rounding leaves no sum above the target the last token of any weight is it, here and below.
            let (part, _) = self.first_over(target);
            if part == LANES {
                return 0;
            }
            let rest = target - warp::warp_shuffle_idx(FULL_MASK, self.before, part);
            let Part { mut begin, end } = Part::of(weights.entries.vocab, part);
            let (mut carry, mut found) = (0.0, 0);
            while begin < end {
                let chunk = begin + lane;
                let w = if chunk < end { weights.load(chunk) } else { [0.0; WIDTH as usize] };
                let sums = Self::over((w[0] + w[1]) + (w[2] + w[3]));
                let (owner, decided) = sums.first_over(rest - carry);
                if owner < LANES {
                    let id = chunk * WIDTH + first_entry(w, rest - carry - sums.before);
                    found = warp::warp_shuffle_idx(FULL_MASK, id, owner);
                }
                if decided {
                    break;
                }
                carry += warp::warp_shuffle_idx(FULL_MASK, sums.to, LANES - 1);
                begin += LANES;
            }
            found
        }
    }
}

/// The first entry of a chunk at which the running sum is more than `target`, or the last of any weight.
#[inline(always)]
fn first_entry(w: [f32; WIDTH as usize], target: f32) -> u32 {
    let (mut sum, mut place, mut over) = (0.0, 0, false);
    for (entry, weight) in w.into_iter().enumerate() {
        if !over && weight > 0.0 {
            place = entry as u32;
        }
        sum += weight;
        over |= sum > target;
    }
    place
}
