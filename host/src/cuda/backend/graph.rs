//! Steps as CUDA graphs.

use std::borrow::Cow;
use std::sync::Arc;

use kernels_gpu::abi::NONE;

use super::{CudaBackend, Mirror, Table};
use crate::attention::{BackendError, Counters, check_plan};
use crate::cuda::{
    CachePointers, CudaError, CudaPlan, DeviceBuffer, DeviceElements, DevicePtr, Event, Graph,
    PlanCapacity, RawStream, Stream,
};
use crate::plan::Plan;
use crate::retain::Observe;

/// What a step brings to the device, whatever its layers do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepCall<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) counters: Counters<'a>,
    pub(crate) targets: &'a [u32],
    pub(crate) positions: &'a [u32],
    /// Rows of the step: as many as targets, or more.
    pub(crate) rows: usize,
    /// Of a step with score passes.
    pub(crate) scores: Option<ScoreCall<'a>>,
}

/// What score passes bring besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreCall<'a> {
    pub(crate) plan: &'a Plan,
    /// `[rows]`, or fewer.
    pub(crate) visible: &'a [u32],
}

impl StepCall<'_> {
    /// A target for each row.
    fn padded(&self) -> Cow<'_, [u32]> {
        let mut targets = Cow::Borrowed(self.targets);
        if self.rows > targets.len() {
            targets.to_mut().resize(self.rows, NONE);
        }
        targets
    }
}

/// What the launches of a captured step read besides the caller's rows, at addresses that stay.
#[derive(Debug)]
pub(super) struct StepInputs {
    pub(super) plan: CudaPlan,
    pub(super) targets: Mirror<u32>,
    pub(super) positions: Mirror<u32>,
    tables: Vec<Arc<Table>>,
    /// Query heads of all rows.
    pub(super) q_heads: usize,
    /// Padded rows.
    padded: Vec<Arc<DeviceBuffer<u16>>>,
    pub(super) scores: Option<ScoreInputs>,
}

/// The same of score passes.
#[derive(Debug)]
pub(super) struct ScoreInputs {
    pub(super) plan: CudaPlan,
    pub(super) visible: Mirror<u32>,
}

impl StepInputs {
    /// Keeps a rotary table as long as the step.
    pub(super) fn read_table(&mut self, table: &Arc<Table>) {
        if !self.tables.iter().any(|held| Arc::ptr_eq(held, table)) {
            self.tables.push(table.clone());
        }
    }

    /// Keeps padded rows as long as the step.
    pub(super) fn use_rows(&mut self, rows: &Arc<DeviceBuffer<u16>>) {
        if !self.padded.iter().any(|held| Arc::ptr_eq(held, rows)) {
            self.padded.push(rows.clone());
        }
    }
}

/// Where the rows of some calls were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Streams other than the cache's.
    streams: Vec<RawStream>,
    on_host: bool,
    /// The scores that they left.
    pub(crate) observe: Option<Observe>,
}

impl Seen {
    /// Whether all rows were on the device, so that the calls can be captured.
    pub(crate) fn on_device(&self) -> bool {
        !self.on_host
    }
}

/// A step's launches as a graph.
#[derive(Debug)]
pub(crate) struct RecordedStep {
    graph: Graph,
    inputs: StepInputs,
    /// Streams besides the cache's that the step was captured from.
    seen: Seen,
    /// The counters that the launches read.
    counters: CachePointers,
    /// Of the arrays of compacted nodes those that the launches read.
    compacted: u64,
    stream: Arc<Stream>,
}

impl Drop for RecordedStep {
    fn drop(&mut self) {
        // It may be running. Where the wait fails, the context is lost and nothing runs.
        let _ = self.stream.synchronize();
    }
}

impl CudaBackend {
    /// Records an event on the cache's stream, if there is one.
    pub(crate) fn record(&self, event: Option<&Event>) -> Result<(), BackendError> {
        Ok(event.map_or(Ok(()), |event| event.record(&self.stream))?)
    }

    /// Where a step's append targets are. Unless it is being captured they are brought there, and counters too.
    pub(crate) fn step_targets(&mut self, call: &StepCall<'_>) -> Result<DevicePtr, BackendError> {
        if let Some(inputs) = &self.capturing {
            return Ok(inputs.targets.pointer_of(&call.padded()));
        }
        self.set_counters(call.counters)?;
        Ok(self.targets.fill(&self.stream, &call.padded())?.pointer())
    }

    /// Begins to look where rows are.
    pub(crate) fn look(&mut self) {
        self.seen = Seen::default();
    }

    /// Where rows were since [`CudaBackend::look`].
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Notes where rows are; while a step is captured they must be on the device.
    pub(super) fn see(
        &mut self,
        rows: &[(&'static str, Option<DeviceElements>)],
    ) -> Result<(), BackendError> {
        for &(argument, rows) in rows {
            match rows {
                None if self.capturing.is_some() => {
                    return Err(BackendError::NotOnDevice { argument });
                }
                None => self.seen.on_host = true,
                Some(rows) if rows.stream == self.stream.raw() => {}
                Some(rows) if self.seen.streams.contains(&rows.stream) => {}
                Some(rows) => self.seen.streams.push(rows.stream),
            }
        }
        Ok(())
    }

    /// The stream that steps are captured on, to be held while the backend is used.
    pub(crate) fn shared_stream(&self) -> Arc<Stream> {
        self.stream.clone()
    }

    /// Prepares to capture a step: all that its launches read is brought to the device, plans into as much room at
    /// least as a step of as many rows had `before`.
    pub(crate) fn prepare(
        &mut self,
        call: &StepCall<'_>,
        before: Option<PlanCapacity>,
    ) -> Result<(), BackendError> {
        let q_heads = call.rows * (call.plan.group_size() * self.shape.kv_heads) as usize;
        if let Some(padded) = &mut self.padded {
            padded.prepare(self.cache.device(), q_heads)?;
        }
        let mut inputs = StepInputs {
            plan: self.room(call.plan, before, Some(call.rows))?,
            targets: Mirror::new("a step's append targets"),
            positions: Mirror::new("a step's positions"),
            tables: Vec::new(),
            q_heads,
            padded: Vec::new(),
            scores: None,
        };
        if let Some(scores) = call.scores {
            let visible = Mirror::new("a step's visible tokens");
            let plan = self.room(scores.plan, None, Some(0))?;
            inputs.scores = Some(ScoreInputs { plan, visible });
        }
        self.bring(&mut inputs, call, true)?;
        self.capturing = Some(inputs);
        Ok(())
    }

    /// Has the capture that has begun on the cache's stream cover the streams of `seen` too.
    pub(crate) fn fork(&self, seen: &Seen) -> Result<(), CudaError> {
        self.leave_to(seen.streams.iter().copied())
    }

    /// Brings the streams of `seen` back to the cache's before the capture ends.
    pub(crate) fn join(&self, seen: &Seen) -> Result<(), CudaError> {
        self.enter_from(seen.streams.iter().copied())
    }

    /// Ends what [`CudaBackend::prepare`] began; the step, if it was captured.
    pub(crate) fn finish(&mut self, graph: Option<Graph>, seen: &Seen) -> Option<RecordedStep> {
        let inputs = self.capturing.take()?;
        Some(RecordedStep {
            graph: graph?,
            inputs,
            seen: seen.clone(),
            counters: self.counters_at(),
            compacted: self.cache.compacted.generation,
            stream: self.stream.clone(),
        })
    }

    /// Whether `step` can run `call`: nothing that its launches read has moved or become too small.
    pub(crate) fn can_replay(
        &mut self,
        step: &RecordedStep,
        call: &StepCall<'_>,
    ) -> Result<bool, CudaError> {
        let counters = call.counters;
        let slots = counters.lengths.len().max(counters.tail_pages.len());
        self.cache.reserve_slots(slots)?;
        let (now, then) = (self.counters_at(), step.counters);
        if let Some(directory) = counters.directory {
            self.cache.set_directory(directory, &self.stream)?;
        }
        let moved = (now.lengths, now.tail_pages) != (then.lengths, then.tail_pages)
            || self.cache.compacted.generation != step.compacted;
        let scores = step.inputs.scores.as_ref().zip(call.scores);
        let scored = scores.is_none_or(|(inputs, call)| inputs.plan.could_hold(call.plan));
        Ok(!moved && scored && step.inputs.plan.could_hold(call.plan))
    }

    /// Launches a captured step, for which nothing but what differs from the step before is copied.
    pub(crate) fn replay(
        &mut self,
        step: &mut RecordedStep,
        call: &StepCall<'_>,
        events: Option<(&Event, &Event)>,
    ) -> Result<(), BackendError> {
        let rotated = !step.inputs.tables.is_empty();
        self.bring(&mut step.inputs, call, rotated)?;
        self.enter_from(step.seen.streams.iter().copied())?;
        self.record(events.map(|(begin, _)| begin))?;
        // SAFETY: what is ours of the memory that the launches use is held by the step and by this backend, whose
        // counters have not moved; the caller's is kept by the promise made for its rows.
        unsafe { step.graph.launch(&self.stream) }?;
        self.record(events.map(|(_, end)| end))?;
        Ok(self.leave_to(step.seen.streams.iter().copied())?)
    }

    /// Brings a step's inputs to the device, where they differ from what is there.
    fn bring(
        &mut self,
        inputs: &mut StepInputs,
        call: &StepCall<'_>,
        rotated: bool,
    ) -> Result<(), BackendError> {
        check_plan(self.cache.shape(), call.plan, call.counters)?;
        self.set_counters(call.counters)?;
        inputs.plan.update(call.plan, &self.stream)?;
        inputs.targets.fill(&self.stream, &call.padded())?;
        if let (Some(inputs), Some(scores)) = (&mut inputs.scores, call.scores) {
            check_plan(self.cache.shape(), scores.plan, call.counters)?;
            inputs.plan.update(scores.plan, &self.stream)?;
            let mut visible = scores.visible.to_vec();
            visible.resize(call.rows, 0);
            inputs.visible.fill(&self.stream, &visible)?;
        }
        if rotated {
            inputs.positions.fill(&self.stream, call.positions)?;
        }
        Ok(())
    }

    fn counters_at(&self) -> CachePointers {
        let layer = self.cache.layer_pointers(0);
        layer.expect("a cache has a layer")
    }
}

impl RecordedStep {
    /// Its room for plans.
    pub(crate) fn capacity(&self) -> PlanCapacity {
        self.inputs.plan.capacity().clone()
    }
    /// Bytes of device memory.
    pub(crate) fn bytes(&self) -> usize {
        let scores = self.inputs.scores.as_ref();
        self.inputs.plan.bytes() + scores.map_or(0, |inputs| inputs.plan.bytes())
    }
    /// Streams that it was captured from.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }
}

impl CudaPlan {
    /// Whether `plan` can be put there; blocks of shares that it lacks do nothing.
    fn could_hold(&self, plan: &Plan) -> bool {
        self.capacity().holds(&PlanCapacity::of(plan)).is_ok()
            && self.group_size() == plan.group_size()
    }

    /// Whether `plan` can be put there, and no block is launched in vain.
    pub(super) fn has_room_for(&self, plan: &Plan) -> bool {
        self.could_hold(plan) && self.capacity().shares == plan.shares()
    }
}
