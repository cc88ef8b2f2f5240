//! The best continuations of many rows together: the launches in their order.

use deft::cuda::{CudaDevice, CudaError, DevicePtr, Kernel, RawStream};
use kernels_gpu::model::limits::{
    BEST_BLOCKS, BEST_MAX_SEGMENTS, BEST_SEGMENT, BEST_THREADS, BestDigits,
};
use kernels_gpu::ptx::{self, Arguments as _};

use super::blocks;
use super::check::refused;

/// Device pointers of a choice of the best of all entries of all rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct BestOfRows {
    /// `[rows, vocab]` f32.
    pub logits: DevicePtr,
    /// `[rows]` f32: what is added to a row's log-probabilities; a row of -inf takes no part.
    pub scores: DevicePtr,
    /// `[rows, 2]` f32, written: of each row the largest base-2 logit, and the base-2 logarithm of the sum of its softmax
    /// relative to that. One of them is not finite for a row that has none.
    pub totals: DevicePtr,
    /// `[`[`BestOfRows::segments`]`]` u64, scratch.
    pub keys: DevicePtr,
    /// [`BEST_STATE_WORDS`](kernels_gpu::model::limits::BEST_STATE_WORDS) u32, written: word
    /// [`BEST_RESULTS`](kernels_gpu::model::limits::BEST_RESULTS) is how many were chosen.
    pub state: DevicePtr,
    /// `[`[`BestOfRows::candidates`]`]` u64, scratch.
    pub candidates: DevicePtr,
    /// `[k]` u32, written: row times `vocab` plus entry, in any order.
    pub entries: DevicePtr,
    /// `[k]` f32, written: their natural log-probabilities, without the score.
    pub log_probs: DevicePtr,
    /// Number of rows.
    pub rows: u32,
    /// Entries of a row.
    pub vocab: u32,
    /// Entries to choose; fewer are where fewer have a probability.
    pub k: u32,
}

impl BestOfRows {
    /// Segments of all rows.
    pub const fn segments(rows: u32, vocab: u32) -> u32 {
        rows * vocab.div_ceil(BEST_SEGMENT)
    }

    /// Most candidates that there may be: all entries of `k` segments.
    pub const fn candidates(rows: u32, vocab: u32, k: u32) -> u64 {
        let segments = Self::segments(rows, vocab);
        (if k < segments { k } else { segments }) as u64 * BEST_SEGMENT as u64
    }

    pub(super) fn check(&self) -> Result<(), CudaError> {
        let most = BEST_MAX_SEGMENTS * BEST_SEGMENT;
        if self.vocab == 0 || self.vocab > most {
            return Err(refused("vocab", self.vocab, format!("1 to {most}")));
        }
        let rows = u32::MAX / self.vocab;
        if self.rows > rows {
            return Err(refused(
                "rows",
                self.rows,
                format!("at most {rows}: fewer than 2^32 entries"),
            ));
        }
        if self.k == 0 {
            return Err(refused("k", 0, "at least 1"));
        }
        Ok(())
    }
}

/// The kernels.
#[derive(Clone, Debug)]
pub(super) struct BestKernels {
    rows: Kernel,
    count: Kernel,
    collect: Kernel,
    emit: Kernel,
}

impl BestKernels {
    pub(super) fn new(device: &CudaDevice) -> Result<Self, CudaError> {
        Ok(Self {
            rows: device.kernel("best_rows", ptx::BestRows::BYTES)?,
            count: device.kernel("best_count", ptx::BestCount::BYTES)?,
            collect: device.kernel("best_collect", ptx::BestCollect::BYTES)?,
            emit: device.kernel("best_emit", ptx::BestEmit::BYTES)?,
        })
    }

    /// # Safety
    /// As [`ModelOps::best_of_rows`](super::ModelOps::best_of_rows).
    pub(super) unsafe fn launch(
        &self,
        best: &BestOfRows,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let &BestOfRows { rows, vocab, .. } = best;
        let len = BestOfRows::segments(rows, vocab);
        let [segment, entry] = [len, rows * vocab].map(BestDigits::of);
        // Of fewer segments than that all are collected.
        let first = if best.k > len { 0 } else { segment.count() };
        let walk = blocks(len.div_ceil(BEST_THREADS).min(BEST_BLOCKS));
        let of_rows = ptx::BestRows {
            logits: best.logits.0,
            scores: best.scores.0,
            totals: best.totals.0,
            keys: best.keys.0,
            state: best.state.0,
            vocab,
            segment_bits: segment.bits,
        };
        let collect = ptx::BestCollect {
            logits: best.logits.0,
            scores: best.scores.0,
            totals: best.totals.0,
            keys: best.keys.0,
            state: best.state.0,
            candidates: best.candidates.0,
            len,
            vocab,
            segment_bits: segment.bits,
            entry_bits: entry.bits,
            digit: first,
            width_before: first.checked_sub(1).map_or(0, |last| segment.width(last)),
        };
        let emit = ptx::BestEmit {
            logits: best.logits.0,
            totals: best.totals.0,
            candidates: best.candidates.0,
            state: best.state.0,
            entries: best.entries.0,
            log_probs: best.log_probs.0,
            vocab,
            entry_bits: entry.bits,
            digit: first + entry.count(),
            width_before: entry.width(entry.count() - 1),
        };
        let count =
            |keys: DevicePtr, len, digits: BestDigits, first: u32, digit: u32| ptx::BestCount {
                keys: keys.0,
                state: best.state.0,
                len,
                k: best.k,
                digit: first + digit,
                first,
                shift: digits.shift(digit),
                width: digits.width(digit),
                width_before: digit.checked_sub(1).map_or(0, |before| digits.width(before)),
            };
        // SAFETY: as in `ModelOps::embed`; each launch finds what the ones before it have left.
        unsafe {
            self.rows.launch(blocks(rows), of_rows, stream)?;
            for digit in 0..first {
                self.count.launch(walk, count(best.keys, len, segment, 0, digit), stream)?;
            }
            self.collect.launch(walk, collect, stream)?;
            for digit in 0..entry.count() {
                self.count.launch(walk, count(best.candidates, 0, entry, first, digit), stream)?;
            }
            self.emit.launch(walk, emit, stream)
        }
    }
}
