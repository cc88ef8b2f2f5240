//! Attention by itself, to be timed.

use std::time::Duration;

use deft::cuda::Event;
use deft::plan::Grouping;
use deft::{NodeKey, StepGraph, StepOptions};

use super::forward::Run;
use super::{CudaModel, CudaModelError};
use crate::ModelError;

impl CudaModel {
    /// Time of attention in all layers for a query at each of `leaves`, with a plan of `grouping`: a graph of attention
    /// alone, the second of two replays. What the queries hold is of no account, and nothing of the model changes.
    ///
    /// # Errors
    /// [`ModelError`]; more leaves than the model was made for, or too little device memory.
    pub fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError> {
        let (rows, max_rows) = (leaves.len(), self.options.max_rows);
        if rows > max_rows as usize {
            return Err(CudaModelError::Rows { rows, max_rows }.into());
        }
        let nodes: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        self.cache.set_grouping(grouping);
        let batch = self.cache.batch_held(&nodes)?;
        let device = self.stream().device();
        let (begin, end) = (Event::new(device)?, Event::new(device)?);
        let options = StepOptions { rows, events: Some((&begin, &end)) };
        let (mut graph, forward) = (StepGraph::new(), &self.forward);
        // Called, captured, replayed.
        for _ in 0..3 {
            // SAFETY: the buffers have room for `max_rows` queries, and live as long as the graph.
            self.cache.capture_with(&mut graph, &batch, options, |step| unsafe {
                Run::new(forward, step, rows as u32)?.attend_only()
            })?;
        }
        let microseconds = end.microseconds_since(&begin)?;
        Ok(Duration::from_secs_f64(microseconds.max(0.0) / 1e6))
    }
}
