//! Attention by itself, to be timed.

use std::time::Duration;

use deft::attention::AttentionParams;
use deft::cuda::{AttendBuffers, CudaError, DevicePtr, Event, PlanCapacity};
use deft::plan::{Grouping, Planner};
use deft::{CacheError, NodeKey};

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
        let group = self.config().q_heads / self.config().kv_heads;
        let view = self.forest.view(leaves)?;
        let mut planner = Planner::new(self.cache.plan_config(grouping, group))?;
        let plan = planner.plan(&view).map_err(CacheError::from)?;
        self.reserve_slots()?;
        let mut room = self.cache.reserve(PlanCapacity::of(&plan), group)?;
        room.update(&plan, &self.stream)?;
        let forest = &self.forest;
        self.cache.set_counters(forest.lengths(), forest.tail_pages(), &self.stream)?;
        let buffers = AttendBuffers {
            q: self.forward.buffers.q.pointer(),
            out: self.forward.buffers.attended.pointer(),
            lse: DevicePtr::NULL,
        };
        let params = AttentionParams::new(self.config().head_dim);
        let mut graph = self.stream.capture(|stream| {
            for layer in 0..self.config().layers {
                // SAFETY: the buffers have room for `max_rows` queries, the plan's pages and counters are the cache's,
                // and all work is on one stream.
                unsafe { self.cache.attend(layer, &room, &buffers, &params, stream.raw()) }?;
            }
            Ok::<_, CudaError>(())
        })?;
        let device = self.stream.device();
        let (begin, end) = (Event::new(device)?, Event::new(device)?);
        for _ in 0..2 {
            begin.record(&self.stream)?;
            // SAFETY: buffers, pages and plan are there until the events were waited for below.
            unsafe { graph.launch(&self.stream) }?;
            end.record(&self.stream)?;
        }
        let microseconds = end.microseconds_since(&begin)?;
        Ok(Duration::from_secs_f64(microseconds.max(0.0) / 1e6))
    }
}
