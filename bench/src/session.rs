//! One problem on a GPU: its cache, its queries, and attention over them.

use anyhow::Result;
use deft::cuda::{
    AttendBuffers, CudaCache, CudaError, CudaPlan, DeviceBuffer, PlanCapacity, Stream,
};
use deft::plan::Plan;

use crate::compare::{Outputs, UNWRITTEN};
use crate::gpu::{Gpu, Repeats};
use crate::stats::Spread;
use crate::tensors::{Heads, HostPool};

/// What of attention is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// All but the merge.
    Partial,
}

#[derive(Debug)]
pub(crate) struct Session<'g> {
    pub(crate) gpu: &'g Gpu,
    pub(crate) cache: CudaCache,
    pub(crate) heads: Heads,
    pub(crate) q: DeviceBuffer<u16>,
    out: DeviceBuffer<u16>,
    lse: DeviceBuffer<f32>,
    plan: Option<CudaPlan>,
}

impl<'g> Session<'g> {
    /// Brings `pool` and the first queries `q` to the device, with room for `queries` queries.
    pub(crate) fn new(
        gpu: &'g Gpu,
        pool: &HostPool,
        q: &[u16],
        queries: u32,
        slots: u32,
    ) -> Result<Self> {
        let heads = pool.heads;
        let cache = CudaCache::new(&gpu.device, heads.shape(pool.pages()), slots.max(1))?;
        cache.pool().write(0, &pool.elements, &gpu.stream)?;
        let elements = queries as usize * heads.query_elements();
        let rows = (queries * heads.q_heads()) as usize;
        let session = Self {
            gpu,
            cache,
            heads,
            q: DeviceBuffer::uninitialized(&gpu.device, "queries", elements)?,
            out: DeviceBuffer::uninitialized(&gpu.device, "outputs", elements)?,
            lse: DeviceBuffer::uninitialized(&gpu.device, "LSEs", rows)?,
            plan: None,
        };
        session.q.write(0, q, &gpu.stream)?;
        Ok(session)
    }

    /// Brings `plan` to the device.
    pub(crate) fn load(&mut self, plan: &Plan) -> Result<()> {
        let capacity = PlanCapacity::of(plan);
        let mut room = self.cache.reserve(capacity, self.heads.group)?;
        room.update(plan, &self.gpu.stream)?;
        self.plan = Some(room);
        Ok(())
    }

    /// Enqueues attention over the plan that was loaded, or the part of it before the merge.
    fn enqueue(&self, part: Part, stream: &Stream) -> Result<(), CudaError> {
        let plan = self.plan.as_ref().expect("a plan is loaded first");
        let buffers = AttendBuffers {
            q: self.q.pointer(),
            out: self.out.pointer(),
            lse: self.lse.pointer(),
        };
        let params = &self.heads.params;
        // SAFETY: the buffers hold as many queries as the session was made for, which is what plans of
        // this problem have at most; everything runs on one stream.
        unsafe {
            match part {
                Part::Whole => self.cache.attend(0, plan, &buffers, params, stream.raw()),
                Part::Partial => self
                    .cache
                    .attend_partial(0, plan, &buffers, params, stream.raw()),
            }
        }
    }

    /// Poisons outputs.
    fn poison(&self) -> Result<()> {
        let [byte, _] = UNWRITTEN.to_le_bytes();
        self.out.fill_bytes(byte, &self.gpu.stream)?;
        self.lse.fill_bytes(byte, &self.gpu.stream)?;
        Ok(())
    }

    /// What is in the outputs of the first `queries` queries.
    fn outputs(&self, queries: u32) -> Result<Outputs> {
        let mut outputs = Outputs {
            out: vec![0; queries as usize * self.heads.query_elements()],
            lse: vec![0.0; (queries * self.heads.q_heads()) as usize],
        };
        self.out.read(0, &mut outputs.out, &self.gpu.stream)?;
        self.lse.read(0, &mut outputs.lse, &self.gpu.stream)?;
        Ok(outputs)
    }

    /// Attention over the plan that was loaded, into poisoned outputs.
    pub(crate) fn attend(&self, queries: u32, what: &str) -> Result<Outputs> {
        self.poison()?;
        self.enqueue(Part::Whole, &self.gpu.stream)?;
        self.gpu.settle(what)?;
        self.outputs(queries)
    }

    /// Microseconds of attention over the plan that was loaded, as a replayed graph.
    pub(crate) fn time(&self, part: Part, repeats: Repeats, what: &str) -> Result<Spread> {
        let mut graph = self.gpu.capture(|stream| self.enqueue(part, stream))?;
        // SAFETY: all buffers are this session's, which outlives the graph.
        unsafe { self.gpu.time(&mut graph, repeats, what) }
    }
}
