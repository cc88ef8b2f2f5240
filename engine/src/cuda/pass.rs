//! A pass as a step of the cache, and its results back.

use deft::cuda::Event;
use deft::{Batch, NodeKey, StepGraph, StepOptions};

use super::forward::{Pass, Run};
use super::model::on_gpu;
use super::probe::Nobody;
use super::rows::bucket;
use super::{CudaModel, CudaModelError};
use crate::ModelError;
use crate::traffic::{path_bytes, plan_bytes};

/// Bytes of an element of K or V, f16 or bf16.
const ELEMENT_BYTES: u32 = size_of::<u16>() as u32;

/// Most kinds of passes that graphs are kept of: there are as many as ways to rank.
const MAX_KINDS: usize = 32;

impl CudaModel {
    /// Adds a token to each of `leaves`, or to none, and plans their step.
    pub(super) fn grow(&mut self, leaves: &[NodeKey]) -> Result<(), ModelError> {
        for &leaf in leaves {
            self.check_context(self.tokens_of(leaf)? + 1)?;
        }
        self.begin_step()?;
        let is_theirs = |batch: &&mut Batch| batch.nodes().iter().copied().eq(ones(leaves));
        if let Some(batch) = self.batch.as_mut().filter(is_theirs) {
            self.cache.advance(batch, 1)?;
            return Ok(());
        }
        self.cache.extend(leaves, 1)?;
        let planned = self.plan(leaves);
        self.or_shrink(leaves, planned)
    }

    /// Plans a step of the last token of each of `nodes`.
    pub(super) fn plan(&mut self, nodes: &[NodeKey]) -> Result<(), ModelError> {
        let nodes: Vec<_> = ones(nodes).collect();
        self.cache.set_grouping(self.options.grouping);
        self.batch = Some(self.cache.batch_held(&nodes)?);
        Ok(())
    }

    /// `outcome` of a pass over `leaves`; where that failed they lose the token that [`CudaModel::grow`] gave them.
    pub(super) fn or_shrink<T>(
        &mut self,
        leaves: &[NodeKey],
        outcome: Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        if outcome.is_err() {
            self.cache.shrink(leaves, 1)?;
        }
        outcome
    }

    /// Enqueues a pass over what was planned last; with no `tokens` those that the device chose.
    pub(super) fn run(
        &mut self,
        tokens: Option<&[u32]>,
        pass: Pass,
        events: Option<(&Event, &Event)>,
    ) -> Result<(), ModelError> {
        self.forward.check()?;
        let pass = self.observing(pass);
        let batch = self.batch.as_ref().expect("it was planned");
        let rows = bucket(batch.rows() as u32);
        if let Some(tokens) = tokens {
            let inputs = &mut self.forward.buffers.inputs;
            inputs.set(tokens, batch.positions(), on_gpu(&self.cache).stream())?;
        }
        let graph = graph_of(&mut self.graphs, pass);
        let options = StepOptions { rows: rows as usize, events };
        let forward = &self.forward;
        // SAFETY: buffers have room for `max_rows` rows (checked) rounded up, and live as long as the model's graphs;
        // tokens and positions are in range (checked) or chosen by the device from logits of its own.
        self.cache.capture_with(graph, batch, options, |step| unsafe {
            Run::new(forward, step, rows)?.enqueue(pass, &mut Nobody)
        })?;
        self.count_traffic()
    }

    /// Rows of the last step or draft.
    pub(super) fn rows(&self) -> usize {
        self.batch.as_ref().map_or(0, Batch::rows)
    }

    /// Adds what attention reads in a step or a draft.
    fn count_traffic(&mut self) -> Result<(), ModelError> {
        let Some(batch) = &self.batch else { return Ok(()) };
        let (config, forest) = (self.forward.weights.config(), self.cache.forest());
        self.traffic.read += plan_bytes(batch.plan(), config, ELEMENT_BYTES, forest.lengths());
        let leaves = batch.nodes().iter().map(|&(node, _)| node);
        self.traffic.per_query += path_bytes(forest, leaves, config, ELEMENT_BYTES)?;
        Ok(())
    }

    /// The same of a part of a prompt: it counts alike in both numbers, for no engine reads its K and V once a token.
    pub(super) fn count_prefill(&mut self, batch: &Batch) {
        let (config, lengths) = (self.forward.weights.config(), self.cache.forest().lengths());
        let read = plan_bytes(batch.plan(), config, ELEMENT_BYTES, lengths);
        self.traffic.read += read;
        self.traffic.per_query += read;
    }

    /// Waits, and writes the logits of the last pass in the order of its nodes: `[nodes, vocabulary]`.
    pub(super) fn read_logits(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let vocabulary = self.config().vocabulary as usize;
        logits.clear();
        logits.resize(self.rows() * vocabulary, 0.0);
        self.settle()?;
        Ok(self.forward.buffers.logits.read(0, logits, self.stream())?)
    }

    /// Waits for what was enqueued, as long as the other ranks are there.
    pub(super) fn settle(&self) -> Result<(), CudaModelError> {
        self.forward.settle(self.stream())
    }

    pub(super) fn read_history(&self, history: &mut [u32]) -> Result<(), ModelError> {
        self.settle()?;
        Ok(self.forward.buffers.history.read(0, history, self.stream())?)
    }

    /// Waits, and writes the last pass's ranking in the order of its nodes: `[nodes, ranked]`.
    pub(super) fn read_ranking(
        &self,
        ranked: u32,
        ids: &mut Vec<u32>,
        log_probs: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        // The pass ranked its inert rows too.
        let (rows, passed) = (self.rows(), bucket(self.rows() as u32) as usize);
        let [entries, all] = [rows, passed].map(|rows| rows * ranked as usize);
        let mut words = vec![0; 2 * all];
        self.settle()?;
        self.forward.buffers.chosen.read(0, &mut words, self.stream())?;
        *log_probs = words[all..][..entries].iter().copied().map(f32::from_bits).collect();
        words.truncate(entries);
        *ids = words;
        Ok(())
    }
}

/// A token of each node.
fn ones(nodes: &[NodeKey]) -> impl Iterator<Item = (NodeKey, u32)> + '_ {
    nodes.iter().map(|&node| (node, 1))
}

/// The graphs of one kind of pass; where there are too many kinds, those go that ran longest ago.
fn graph_of(graphs: &mut Vec<(Pass, StepGraph)>, pass: Pass) -> &mut StepGraph {
    match graphs.iter().position(|(known, _)| *known == pass) {
        Some(at) => graphs[at..].rotate_left(1),
        None => {
            if graphs.len() == MAX_KINDS {
                graphs.remove(0);
            }
            graphs.push((pass, StepGraph::new()));
        }
    }
    &mut graphs.last_mut().expect("it was just put there").1
}

#[cfg(test)]
mod tests {
    use super::super::forward::Tail;
    use super::*;

    #[test]
    fn graphs_of_the_kinds_that_ran_last_are_kept() {
        let kind = |ranked| Pass::whole(Tail::Choose(ranked));
        let mut graphs = Vec::new();
        for ranked in 0..MAX_KINDS as u32 {
            graph_of(&mut graphs, kind(ranked));
        }
        graph_of(&mut graphs, kind(0));
        graph_of(&mut graphs, kind(99));
        assert_eq!(graphs.len(), MAX_KINDS);
        let kept = |ranked| graphs.iter().any(|(known, _)| *known == kind(ranked));
        assert!(kept(0) && !kept(1) && kept(99));
    }
}
