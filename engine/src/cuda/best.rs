//! The step of a growing draft: its pass, and the best of all that may follow, chosen on the device.

use deft::NodeKey;
use deft::cuda::{CudaDevice, CudaError, DeviceBuffer};
use kernels_gpu::model::limits::{BEST_RESULTS, BEST_STATE_WORDS};

use super::buffers::MAX_RANKED;
use super::forward::{Pass, Tail};
use super::ops::BestOfRows;
use super::{CudaModel, CudaModelError};
use crate::ModelError;
use crate::grown::{self, BestToken, Grown, GrownToken};
use crate::select::Select;

/// Device memory of a choice among all entries of all rows, made when the first is asked for.
#[derive(Debug)]
pub(super) struct Best {
    /// Rows, and most entries to choose.
    rows: u32,
    k: u32,
    scores: DeviceBuffer<f32>,
    totals: DeviceBuffer<f32>,
    keys: DeviceBuffer<u64>,
    state: DeviceBuffer<u32>,
    candidates: DeviceBuffer<u64>,
    entries: DeviceBuffer<u32>,
    log_probs: DeviceBuffer<f32>,
}

impl Best {
    fn new(device: &CudaDevice, rows: u32, vocab: u32, k: u32) -> Result<Self, CudaError> {
        let segments = BestOfRows::segments(rows, vocab) as usize;
        let candidates = BestOfRows::candidates(rows, vocab, k) as usize;
        let of = |what, len| DeviceBuffer::uninitialized(device, what, len);
        Ok(Self {
            rows,
            k,
            scores: of("scores of beams", rows as usize)?,
            totals: of("softmax of beams", 2 * rows as usize)?,
            keys: DeviceBuffer::uninitialized(device, "keys of beams", segments)?,
            state: DeviceBuffer::uninitialized(
                device,
                "counts of keys",
                BEST_STATE_WORDS as usize,
            )?,
            candidates: DeviceBuffer::uninitialized(device, "candidates of beams", candidates)?,
            entries: DeviceBuffer::uninitialized(device, "the best of beams", k as usize)?,
            log_probs: of("their log-probabilities", k as usize)?,
        })
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let words = self.scores.len() + self.totals.len() + self.state.len();
        let results = self.entries.len() + self.log_probs.len();
        let keys = self.keys.len() + self.candidates.len();
        (4 * (words + results) + 8 * keys) as u64
    }

    /// The choice of `k` of the logits at `logits`.
    pub(super) fn of_rows(
        &self,
        logits: &DeviceBuffer<f32>,
        (rows, vocab): (u32, u32),
        k: u32,
    ) -> BestOfRows {
        BestOfRows {
            logits: logits.pointer(),
            scores: self.scores.pointer(),
            totals: self.totals.pointer(),
            keys: self.keys.pointer(),
            state: self.state.pointer(),
            candidates: self.candidates.pointer(),
            entries: self.entries.pointer(),
            log_probs: self.log_probs.pointer(),
            rows,
            vocab,
            k,
        }
    }
}

impl CudaModel {
    /// [`TreeModel::grow_draft`](crate::TreeModel::grow_draft).
    pub(super) fn run_grown(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        grown::check(grown, k)?;
        let tokens: Vec<u32> = grown.iter().map(|one| one.token).collect();
        self.check_pass(grown.len(), &tokens)?;
        let entries = grown.len() as u64 * u64::from(self.config().vocabulary);
        let k = entries.min(k as u64).min(u64::from(u32::MAX)) as u32;
        let parents: Vec<NodeKey> = grown.iter().map(|one| one.parent).collect();
        self.begin_step()?;
        let nodes = self.cache.grow_draft(trunk, &parents)?;
        let planned = self.check_paths(&nodes).and_then(|()| self.plan(&nodes));
        let ranked = k <= MAX_RANKED || self.forward.ranks.is_some();
        let outcome = planned.and_then(|()| match ranked {
            true => self.best_by_rows(&tokens, grown, k),
            false => self.best_of_all(&tokens, grown, k),
        });
        match outcome {
            Ok(found) => Ok(Grown { nodes, ..found }),
            Err(error) => {
                for node in nodes {
                    self.cache.prune(node)?;
                }
                Err(error)
            }
        }
    }

    /// Runs what was planned and ranks each row: what is best of all is among that.
    fn best_by_rows(
        &mut self,
        tokens: &[u32],
        grown: &[GrownToken],
        k: u32,
    ) -> Result<Grown, ModelError> {
        let top = Select::Top { k: k.min(self.config().vocabulary) as usize };
        let select = vec![top; grown.len()];
        let pass = self.ranking(&select);
        self.run(Some(tokens), pass, None)?;
        Ok(Grown::of(Vec::new(), &self.answers(&select)?, grown, k as usize))
    }

    /// Runs what was planned and chooses among all rows on the device.
    fn best_of_all(
        &mut self,
        tokens: &[u32],
        grown: &[GrownToken],
        k: u32,
    ) -> Result<Grown, ModelError> {
        self.make_best(k)?;
        // Differences are what counts, and near 0 they are exact.
        let highest = grown.iter().map(|one| one.score).fold(f64::NEG_INFINITY, f64::max);
        let best = self.forward.buffers.best.as_ref().expect("it was just made");
        let mut scores = vec![f32::NEG_INFINITY; best.rows as usize];
        for (score, one) in scores.iter_mut().zip(grown) {
            *score = ((one.score - highest) as f32).max(f32::MIN);
        }
        best.scores.upload(0, &scores, self.stream())?;
        self.run(Some(tokens), Pass::whole(Tail::Best(k)), None)?;
        self.settle()?;
        let stream = self.stream();
        let best = self.forward.buffers.best.as_ref().expect("it was just made");
        let mut found = [0];
        best.state.read(BEST_RESULTS as usize, &mut found, stream)?;
        let found = found[0].min(k) as usize;
        let (mut entries, mut log_probs) = (vec![0; found], vec![0.0; found]);
        let mut totals = vec![0.0; 2 * grown.len()];
        best.entries.read(0, &mut entries, stream)?;
        best.log_probs.read(0, &mut log_probs, stream)?;
        best.totals.read(0, &mut totals, stream)?;
        let undefined = totals.chunks_exact(2).position(|total| !(total[0] + total[1]).is_finite());
        let vocabulary = self.config().vocabulary;
        let tokens = entries.iter().zip(&log_probs).map(|(&entry, &log_prob)| BestToken {
            row: entry / vocabulary,
            token: entry % vocabulary,
            log_prob: f64::from(log_prob),
        });
        let mut best: Vec<BestToken> = tokens.collect();
        grown::sort(&mut best, grown);
        Ok(Grown { nodes: Vec::new(), best, undefined: undefined.map(|row| row as u32) })
    }

    /// Sees to memory for a choice of `k`.
    fn make_best(&mut self, k: u32) -> Result<(), CudaModelError> {
        if self.forward.buffers.best.as_ref().is_some_and(|best| best.k >= k) {
            return Ok(());
        }
        let device = self.stream().device().clone();
        let vocab = self.config().vocabulary;
        let rows = (self.forward.buffers.logits.len() / vocab as usize) as u32;
        // What was captured with the old one is not to run again; what ran has been waited for.
        self.graphs.retain(|(pass, _)| !matches!(pass.tail, Tail::Best(_)));
        self.forward.buffers.best = None;
        self.forward.buffers.best = Some(Best::new(&device, rows, vocab, k)?);
        Ok(())
    }
}
