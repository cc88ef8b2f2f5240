//! Rankings of a row whose logits lie on several devices: each ranks its own entries, and what all of them found is merged.
//!
//! What a device finds of a row is a record of [`part_words`] words: the largest base-2 logit and the sum of its part of
//! the softmax, then the high and the low word of an entry's key and its logit, `k` times, best first. An entry that is
//! not there has the key 0.

use super::noise::{Noise, Sampling};
use super::rank::{Entries, Scratch, id_of, log_prob, warp_max, warp_merge};
use crate::model::limits::part_words;
use crate::softmax::{Approximate, Partial};
use device::{global, thread, warp};

/// Words before the entries of a record, and of one of them.
const HEAD: u32 = part_words(0);
const ENTRY: u32 = part_words(1) - HEAD;

/// What a launch that ranks a part of each row reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct TopKPart {
    /// `[rows, entries]`.
    pub logits: *const f32,
    /// `[rows]` records, written.
    pub found: *mut u32,
    /// Entries of a row that are here.
    pub entries: u32,
    /// The id of the first.
    pub first: u32,
    /// Entries to give.
    pub k: u32,
}

/// A record of each row: its best entries of these and their part of the softmax. A block a row.
///
/// # Safety
/// The arrays are valid for their shapes, `logits` 16-byte aligned; `k` is from 1 to 64, there is an entry.
#[inline(always)]
pub unsafe fn top_k_part(t: TopKPart) {
    // SAFETY: the caller's.
    unsafe { rank_part(t, Noise::NONE) }
}

/// The same by logits with noise of the settings' temperature, as [`sample_top_k`](super::sample_top_k) has it: an
/// entry's noise is that of its id.
///
/// # Safety
/// As there; `s.streams` and `s.steps` are valid for a word a row.
#[inline(always)]
pub unsafe fn sample_part(t: TopKPart, s: Sampling) {
    // SAFETY: the caller's.
    unsafe { rank_part(t, s.noise(thread::block_idx_x())) }
}

#[inline(always)]
unsafe fn rank_part<const NOISE: bool>(t: TopKPart, noise: Noise<NOISE>) {
    let row = thread::block_idx_x() as usize;
    let logits = t.logits.wrapping_add(row * t.entries as usize);
    let entries = Entries { logits, vocab: t.entries, first: t.first, noise };
    let (index, scratch) = (thread::thread_idx_x(), Scratch::new());
    let record = t.found.wrapping_add(row * part_words(t.k) as usize);
    // SAFETY: all threads are here; a winner is an entry of the part; words are the record's.
    unsafe {
        let own = entries.win(t.k, scratch);
        if index == 0 {
            global::store_u32(record, own.max.to_bits());
            global::store_u32(record.add(1), own.sum.to_bits());
        }
        if index < t.k {
            let key = scratch.winners.at(index).load();
            let to = record.add((HEAD + ENTRY * index) as usize);
            let mut logit = 0.0;
            if key != 0 {
                logit = global::load_f32(logits.add((id_of(key) - t.first) as usize));
            }
            global::store_u32(to, (key >> 32) as u32);
            global::store_u32(to.add(1), key as u32);
            global::store_u32(to.add(2), logit.to_bits());
        }
    }
}

/// What a launch that merges records reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct MergeTopK {
    /// `[parts, rows]` records.
    pub found: *const u32,
    /// `[rows, k]`, written.
    pub ids: *mut u32,
    /// `[rows, k]`, natural logarithm, written.
    pub log_probs: *mut f32,
    /// Devices that have entries.
    pub parts: u32,
    /// Rows.
    pub rows: u32,
    /// Entries to give, as many as a record has.
    pub k: u32,
}

/// The `k` best entries of each row by its records, best first and the lower id first where they are equal, and their
/// logarithms of the row's softmax. A block of a warp a row.
///
/// # Safety
/// The arrays are valid for their shapes; a row's records have `k` entries or more between them, and no entry twice.
#[inline(always)]
pub unsafe fn merge_top_k(m: MergeTopK) {
    let (row, lane) = (thread::block_idx_x(), warp::lane_id());
    let record =
        |part: u32| m.found.wrapping_add((part * m.rows + row) as usize * part_words(m.k) as usize);
    // SAFETY: records of this row, and the warp is whole.
    unsafe {
        let mut own = Partial::EMPTY;
        let mut part = lane;
        while part < m.parts {
            let [max, sum] = [0, 1].map(|i| f32::from_bits(global::load_u32(record(part).add(i))));
            own = own.merge::<Approximate>(Partial { max, sum }).partial;
            part += warp::LANES;
        }
        let total = warp_merge(own);
        let mut limit = u64::MAX;
        for place in 0..m.k {
            let (mut best, mut logit) = (0, 0);
            let mut entry = lane;
            while entry < m.parts * m.k {
                let at = record(entry / m.k).add((HEAD + ENTRY * (entry % m.k)) as usize);
                let [high, low, bits] = [0, 1, 2].map(|i| global::load_u32(at.add(i)));
                let key = u64::from(high) << 32 | u64::from(low);
                if key < limit && key > best {
                    (best, logit) = (key, bits);
                }
                entry += warp::LANES;
            }
            limit = warp_max(best);
            // No two entries have the same key.
            if best == limit {
                let to = (row * m.k + place) as usize;
                global::store_u32(m.ids.add(to), id_of(best));
                global::store_f32(m.log_probs.add(to), log_prob(f32::from_bits(logit), total));
            }
        }
    }
}
