//! What follows the last layer: logits, and what is made of them on the device.
//!
//! Ranks have the logits of their own entries. Where all logits are wanted they are gathered. Where only the best are, each
//! rank ranks its own, and what all have found is merged: a few words a row go between ranks instead of a vocabulary.

use super::CudaModelError;
use super::buffers::{Buffers, Input};
use super::cublas::Sums;
use super::decode::HISTORY;
use super::forward::{Run, Tail, on_gpu};
use super::launches::Rows;
use super::ops::{Feed, Sampling};
use super::probe::{Observer, Stage};
use super::ranks::DeviceRanks;

impl Run<'_, '_> {
    /// # Safety
    /// As [`Run::enqueue`].
    pub(super) unsafe fn tail(
        &mut self,
        tail: Tail,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let (weights, buffers) = (&self.rows.forward.weights, &self.rows.forward.buffers);
        let config = weights.part();
        let last = config.layers - 1;
        let (picks, rows) = match tail {
            Tail::LogitsOfOne => (Some(&buffers.pick), Rows { count: 1, ..self.rows }),
            Tail::Logits | Tail::Choose(_) | Tail::Best(_) | Tail::Ranked { .. } => {
                (None, self.rows)
            }
        };
        let (k, sampling, gathers) = match tail {
            Tail::Logits | Tail::LogitsOfOne | Tail::Best(_) => (0, None, true),
            Tail::Choose(k) => (k, Some(self.sampling()), false),
            Tail::Ranked { k, logits } => (k, None, logits),
        };
        // SAFETY: as in `enqueue`.
        unsafe {
            rows.norm(&weights.final_norm, picks, self.rows.adds_later())?;
            observer.saw(last, Stage::HeadInput, rows.halves(&buffers.normed, config.hidden))?;
            match rows.ranks.filter(|_| !gathers) {
                Some(ranks) => rows.rank_own(ranks, k, sampling.as_ref())?,
                None => {
                    rows.logits()?;
                    let logits = rows.floats(&buffers.logits, config.vocabulary);
                    observer.saw(last, Stage::Logits, logits)?;
                    rows.rank_all(k, sampling.as_ref())?;
                }
            }
        }
        match tail {
            // SAFETY: as in `enqueue`.
            Tail::Choose(k) => unsafe { self.feed(k) },
            // SAFETY: as in `enqueue`.
            Tail::Best(k) => unsafe { rows.best(k) },
            Tail::Logits | Tail::LogitsOfOne | Tail::Ranked { .. } => Ok(()),
        }
    }

    fn sampling(&self) -> Sampling {
        let buffers = &self.rows.forward.buffers;
        Sampling {
            streams: buffers.inputs.pointer(Input::Streams),
            steps: buffers.inputs.pointer(Input::Positions),
            settings: buffers.sampling.pointer(),
        }
    }

    /// Feeds each row's first choice of `ranked` to the next pass.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn feed(&mut self, ranked: u32) -> Result<(), CudaModelError> {
        let Rows { forward, count, stream, .. } = self.rows;
        let inputs = &forward.buffers.inputs;
        let feed = Feed {
            next: self.rows.ranking(ranked).ids,
            targets: on_gpu(self.step)?.targets,
            tokens: inputs.pointer(Input::Tokens),
            positions: inputs.pointer(Input::Positions),
            history: forward.buffers.history.pointer(),
            history_len: HISTORY,
            next_stride: ranked,
            count,
        };
        // SAFETY: as in `enqueue`.
        Ok(unsafe { forward.ops.feed(&feed, stream) }?)
    }
}

impl Rows<'_> {
    /// The logits of all entries, on every rank.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn logits(&self) -> Result<(), CudaModelError> {
        let (weights, buffers) = (&self.forward.weights, &self.forward.buffers);
        let (normed, logits) = (buffers.normed.pointer(), buffers.logits.pointer());
        let place = logits.offset(4 * u64::from(weights.shard().vocabulary().start));
        let shape = (weights.head_shape(), weights.part().vocabulary);
        // SAFETY: as in `enqueue`.
        unsafe {
            self.multiply(normed, weights.head(), place, shape, Sums::F32)?;
            let Some(ranks) = self.ranks else { return Ok(()) };
            ranks.gather_logits(
                logits,
                (self.count, &weights.shard().vocabulary_ends()),
                self.stream,
            )
        }
    }

    /// Ranks or draws `k` of all entries; nothing for none.
    ///
    /// # Safety
    /// As [`Run::enqueue`]; the logits of all are there.
    unsafe fn rank_all(&self, k: u32, sampling: Option<&Sampling>) -> Result<(), CudaModelError> {
        if k == 0 {
            return Ok(());
        }
        let (ops, ranking) = (&self.forward.ops, self.ranking(k));
        // SAFETY: as in `enqueue`.
        unsafe {
            match sampling {
                None => ops.log_softmax_top_k(&ranking, self.stream)?,
                Some(sampling) => ops.sample_top_k(&ranking, sampling, self.stream)?,
            }
        }
        Ok(())
    }

    /// Chooses `k` of all entries of all rows.
    ///
    /// # Safety
    /// As [`Run::enqueue`]; the logits of all are there, and memory for the choice.
    unsafe fn best(&self, k: u32) -> Result<(), CudaModelError> {
        let Buffers { best, logits, .. } = &self.forward.buffers;
        let best = best.as_ref().expect("it was made before the pass");
        let vocab = self.forward.weights.part().vocabulary;
        let choice = best.of_rows(logits, (self.count, vocab), k);
        // SAFETY: as in `enqueue`.
        Ok(unsafe { self.forward.ops.best_of_rows(&choice, self.stream) }?)
    }

    /// The same of this rank's entries, whose logits lie row after row, and of what the others find.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn rank_own(
        &self,
        ranks: &DeviceRanks,
        k: u32,
        sampling: Option<&Sampling>,
    ) -> Result<(), CudaModelError> {
        let (weights, buffers) = (&self.forward.weights, &self.forward.buffers);
        let (normed, logits) = (buffers.normed.pointer(), buffers.logits.pointer());
        let own = weights.shard().vocabulary();
        let shape = (weights.head_shape(), own.len() as u32);
        let (part, merge) = ranks.top_k((logits, own), self.ranking(k));
        // SAFETY: as in `enqueue`; records have room for `k` entries of each row from every rank. Ranks have other entries,
        // and all of the vocabulary between them.
        unsafe {
            self.multiply(normed, weights.head(), logits, shape, Sums::F32)?;
            self.forward.ops.top_k_part(&part, sampling, self.stream)?;
            ranks.gather_found(&merge, self.stream)?;
            Ok(self.forward.ops.merge_top_k(&merge, self.stream)?)
        }
    }
}
