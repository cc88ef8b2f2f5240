//! How a pass gets to the device, and its results back.

use deft::NodeKey;
use deft::cuda::{CudaError, Event};

use super::CudaModel;
use super::buffers::{Input, Inputs};
use super::forward::Pass;
use super::lane::Lane;
use super::probe::Observer;
use super::rows::bucket;
use super::schedule::Schedule;
use crate::ModelError;
use crate::traffic::{path_bytes, plan_bytes};

/// Bytes of an element of K or V, f16 or bf16.
const ELEMENT_BYTES: u32 = size_of::<u16>() as u32;

impl CudaModel {
    /// Adds a token to each of `leaves`, or to none.
    pub(super) fn grow(&mut self, leaves: &[NodeKey]) -> Result<(), ModelError> {
        for &leaf in leaves {
            self.check_context(self.tokens_of(leaf)? + 1)?;
        }
        self.before.clear();
        self.before.extend_from_slice(self.forest.lengths());
        self.forest.extend(leaves, 1)?;
        Ok(())
    }

    /// `outcome` of a pass over `leaves`; where that failed they lose the token that [`CudaModel::grow`] gave them.
    pub(super) fn or_shrink(
        &mut self,
        leaves: &[NodeKey],
        outcome: Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        if outcome.is_err() {
            self.forest.shrink(leaves, 1)?;
            // Nobody knows what the device has counted: the next pass sets all counters.
            let slots = self.forest.lengths().len().min(self.cache.slots() as usize);
            self.cache.assume_lengths(&vec![u32::MAX; slots])?;
        }
        outcome
    }

    /// Enqueues a pass over leaves that [`CudaModel::grow`] has just grown; with no `tokens` those that the device
    /// chose.
    pub(super) fn run_grown(
        &mut self,
        leaves: &[NodeKey],
        tokens: Option<&[u32]>,
        pass: Pass,
        events: Option<(&Event, &Event)>,
    ) -> Result<(), ModelError> {
        self.decode.update(&self.forest, leaves)?;
        let rows = bucket(leaves.len() as u32);
        self.reserve_slots()?;
        let at = self.lane(rows)?;
        self.lanes[at].plan_mut().update(self.decode.plan(), &self.stream)?;
        if let Some(tokens) = tokens {
            self.positions.clear();
            self.decode.positions(&self.forest, &mut self.positions)?;
            let inputs = &mut self.forward.buffers.inputs;
            set_inputs(inputs, &self.decode, tokens, &self.positions);
            inputs.upload(&self.stream)?;
        }
        self.cache.set_counters(&self.before, self.forest.tail_pages(), &self.stream)?;
        if let Some((begin, _)) = events {
            begin.record(&self.stream)?;
        }
        let lane = &mut self.lanes[at];
        // SAFETY: buffers have room for `max_rows` rows (checked) rounded up; inputs are the plan's, with tokens and
        // positions in range (checked) or chosen by the device from logits of its own; all work is on one stream.
        unsafe { lane.launch(&self.forward, &self.cache, pass, &self.stream) }?;
        if let Some((_, end)) = events {
            end.record(&self.stream)?;
        }
        self.cache.assume_lengths(self.forest.lengths())?;
        self.count_traffic(leaves)
    }

    /// Enqueues a pass over draft nodes that are in the forest.
    pub(super) fn run_draft(
        &mut self,
        nodes: &[NodeKey],
        tokens: &[u32],
        pass: Pass,
        events: Option<(&Event, &Event)>,
    ) -> Result<(), ModelError> {
        // Their places are fixed, so the device counts nothing.
        self.before.clear();
        self.before.extend_from_slice(self.forest.lengths());
        self.run_grown(nodes, Some(tokens), pass, events)
    }

    /// Runs a part of a prompt, of exactly as many rows as it has: the last tokens of `node`.
    pub(super) fn run_prefill(
        &mut self,
        node: NodeKey,
        tokens: &[u32],
        pass: Pass,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        let rows = tokens.len() as u32;
        self.prefill.plan_prompt(&self.forest, node, rows)?;
        self.reserve_slots()?;
        let plan = self.prefill.plan();
        let fits = |lane: &Lane| lane.rows() == rows && lane.holds(plan);
        if !self.prefill_lane.as_ref().is_some_and(fits) {
            self.stream.synchronize()?;
            let before = self.prefill_lane.take();
            self.prefill_lane = Some(Lane::new(&self.cache, rows, plan, before.as_ref())?);
        }
        let Some(lane) = &mut self.prefill_lane else {
            unreachable!("it was just made");
        };
        lane.plan_mut().update(plan, &self.stream)?;
        self.positions.clear();
        self.prefill.positions(&self.forest, &mut self.positions)?;
        let inputs = &mut self.forward.buffers.inputs;
        set_inputs(inputs, &self.prefill, tokens, &self.positions);
        inputs.upload(&self.stream)?;
        self.cache.set_counters(self.forest.lengths(), self.forest.tail_pages(), &self.stream)?;
        // SAFETY: as in `run_grown`; buffers have room for `prefill_rows` rows.
        unsafe { lane.enqueue(&self.forward, &self.cache, pass, &self.stream, observer) }?;
        self.count_prefill();
        Ok(())
    }

    /// The lane of `rows` rows, with room for the plan.
    fn lane(&mut self, rows: u32) -> Result<usize, CudaError> {
        let plan = self.decode.plan();
        let at = self.lanes.iter().position(|lane| lane.rows() == rows);
        match at {
            Some(at) if self.lanes[at].holds(plan) => Ok(at),
            Some(at) => {
                // The room may be in use.
                self.stream.synchronize()?;
                self.lanes[at] = Lane::new(&self.cache, rows, plan, Some(&self.lanes[at]))?;
                Ok(at)
            }
            None => {
                self.lanes.push(Lane::new(&self.cache, rows, plan, None)?);
                Ok(self.lanes.len() - 1)
            }
        }
    }

    /// Makes sure that every node has a counter.
    pub(super) fn reserve_slots(&mut self) -> Result<(), CudaError> {
        let slots = self.forest.lengths().len();
        if slots > self.cache.slots() as usize {
            self.stream.synchronize()?;
            self.cache.reserve_slots(slots)?;
            self.lanes.iter_mut().for_each(Lane::forget);
        }
        Ok(())
    }

    /// Adds what attention reads in a step or a draft.
    fn count_traffic(&mut self, nodes: &[NodeKey]) -> Result<(), ModelError> {
        let (config, forest) = (self.forward.weights.config(), &self.forest);
        let plan = self.decode.plan();
        self.traffic.read += plan_bytes(plan, config, ELEMENT_BYTES, forest.lengths());
        for &node in nodes {
            self.traffic.per_query += path_bytes(forest, node, config, ELEMENT_BYTES)?;
        }
        Ok(())
    }

    /// The same of a part of a prompt: it counts alike in both numbers, for no engine reads its K and V once a token.
    fn count_prefill(&mut self) {
        let (config, lengths) = (self.forward.weights.config(), self.forest.lengths());
        let read = plan_bytes(self.prefill.plan(), config, ELEMENT_BYTES, lengths);
        self.traffic.read += read;
        self.traffic.per_query += read;
    }

    /// Waits, and writes the logits of the last pass in the order of its nodes: `[nodes, vocabulary]`.
    pub(super) fn read_logits(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let vocabulary = self.config().vocabulary as usize;
        let buffer = &self.forward.buffers.logits;
        logits.clear();
        logits.resize(self.decode.rows() * vocabulary, 0.0);
        Ok(buffer.read(0, logits, &self.stream)?)
    }

    pub(super) fn read_history(&self, history: &mut [u32]) -> Result<(), ModelError> {
        let buffer = &self.forward.buffers.history;
        Ok(buffer.read(0, history, &self.stream)?)
    }

    /// Waits, and writes the last pass's ranking in the order of its nodes: `[nodes, ranked]`.
    pub(super) fn read_ranking(
        &mut self,
        ranked: u32,
        ids: &mut Vec<u32>,
        log_probs: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let (entries, buffers) = (self.decode.rows() * ranked as usize, &self.forward.buffers);
        ids.resize(entries, 0);
        log_probs.resize(entries, 0.0);
        buffers.ids.read(0, ids, &self.stream)?;
        buffers.log_probs.read(0, log_probs, &self.stream)?;
        Ok(())
    }
}

/// Puts a pass's rows among the inputs, with inert rows after them.
fn set_inputs(inputs: &mut Inputs, schedule: &Schedule, tokens: &[u32], positions: &[u32]) {
    let rows = schedule.rows();
    inputs.pad(rows);
    inputs.rows_mut(Input::Positions)[..rows].copy_from_slice(positions);
    inputs.rows_mut(Input::Targets)[..rows].copy_from_slice(schedule.targets());
    inputs.rows_mut(Input::Tokens)[..rows].copy_from_slice(tokens);
}
