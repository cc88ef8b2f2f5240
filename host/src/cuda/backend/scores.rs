//! Scores and compaction, of arguments that were checked.

use super::CudaBackend;
use crate::attention::{BackendError, Compact, Score};
use crate::cuda::{CudaError, ScoreBuffers};

impl CudaBackend {
    /// As the backend's score.
    pub(super) fn score_checked(&mut self, call: Score<'_>) -> Result<(), BackendError> {
        let rows = [call.q.on_device(), call.lse.on_device()];
        self.see(&[("q", rows[0]), ("lse", rows[1])])?;
        self.set_counters(call.counters)?;
        if self.capturing.is_none() {
            self.load(call.plan, call.counters)?;
            // A captured step has made them when it ran before.
            self.cache.make_scores(call.layer, &self.stream)?;
        }
        let stream = &self.stream;
        let inputs = self.capturing.as_ref().and_then(|inputs| inputs.scores.as_ref());
        let buffers = ScoreBuffers {
            q: self.q.source("q", call.q, stream)?,
            lse: self.lse.source("lse", call.lse, stream)?,
            visible: match inputs {
                Some(inputs) => inputs.visible.pointer_of(call.visible),
                None => self.visible.fill(stream, call.visible)?.pointer(),
            },
        };
        self.enter(&rows)?;
        let heads = call.q.len() / self.shape.head_dim as usize;
        // SAFETY: as below.
        let q = unsafe { self.padded_q(buffers.q, heads) }?;
        let buffers = ScoreBuffers { q, ..buffers };
        let inputs = self.capturing.as_ref().and_then(|inputs| inputs.scores.as_ref());
        let plan = match inputs {
            Some(inputs) => &inputs.plan,
            None => self.plans.last().expect("the plan was just loaded"),
        };
        let (reduce, stream) = (call.reduce, self.stream.raw());
        // SAFETY: the buffers have the lengths that were checked, the plan's pages and counters were checked when it was
        // loaded; buffers of ours are used on one stream only, and the caller's are kept by their promise.
        unsafe { self.cache.score(call.layer, plan, &buffers, reduce, &call.params, stream) }?;
        Ok(self.leave(&rows)?)
    }

    /// As the backend's compact.
    pub(super) fn compact_checked(&mut self, call: &Compact<'_>) -> Result<(), CudaError> {
        if call.biased {
            self.cache.make_biases(call.layer, &self.stream)?;
        }
        let stream = &self.stream;
        let targets = self.row_targets.fill(stream, call.targets)?;
        let sources = self.row_sources.fill(stream, call.sources)?;
        let count = call.targets.len() as u32;
        // SAFETY: rows and ends were checked, the caller names no row twice; the buffers are used on this stream only.
        unsafe { self.cache.compact(call.layer, targets, sources, count, call.biased, stream) }
    }
}
