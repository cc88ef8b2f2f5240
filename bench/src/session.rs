//! One problem on a GPU: its cache, its queries, and attention over them.

use anyhow::Result;
use deft::attention::AttentionParams;
use deft::cache::KvElement;
use deft::cuda::{
    Append, AttendBuffers, CudaCache, CudaError, CudaPlan, DeviceBuffer, PlanCapacity, Stream,
};
use deft::plan::{HeadShape, Plan};
use deft_tests::inputs::Inputs;
use deft_tests::oracle::Outputs;
use kernels_gpu::abi::PAGE_TOKENS;

use crate::gpu::{Gpu, Repeats};
use crate::stats::Spread;

/// What of attention is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// All but the merge.
    Partial,
}

#[derive(Debug)]
pub(crate) struct Session<'g, T> {
    pub(crate) gpu: &'g Gpu,
    pub(crate) cache: CudaCache,
    pub(crate) heads: HeadShape,
    params: AttentionParams,
    q: DeviceBuffer<T>,
    out: DeviceBuffer<T>,
    lse: DeviceBuffer<f32>,
    plan: Option<CudaPlan>,
}

impl<'g, T: KvElement> Session<'g, T> {
    /// Brings K, V and queries to the device.
    pub(crate) fn new(gpu: &'g Gpu, inputs: &Inputs<T>) -> Result<Self> {
        let (device, elements) = (&gpu.device, inputs.q.len());
        let session = Self {
            gpu,
            cache: CudaCache::new(device, inputs.shape(1), 1)?,
            heads: inputs.heads,
            params: inputs.params,
            q: DeviceBuffer::from_slice(device, "queries", &inputs.q)?,
            out: DeviceBuffer::uninitialized(device, "outputs", elements)?,
            lse: DeviceBuffer::uninitialized(
                device,
                "LSEs",
                elements / inputs.heads.head_dim as usize,
            )?,
            plan: None,
        };
        let places: Vec<u32> = (0..inputs.shape(1).pages * PAGE_TOKENS).collect();
        let k = DeviceBuffer::from_slice(device, "keys", &inputs.k)?;
        let v = DeviceBuffer::from_slice(device, "values", &inputs.v)?;
        let targets = DeviceBuffer::from_slice(device, "places", &places)?;
        let append = Append {
            targets: targets.pointer(),
            count: places.len() as u32,
            k: k.pointer(),
            v: v.pointer(),
        };
        // SAFETY: a row of K and V for every place of the cache; the buffers outlive the wait below.
        unsafe { session.cache.append(0, &append, gpu.stream.raw()) }?;
        gpu.settle("appending K and V")?;
        Ok(session)
    }

    /// Brings a forest's lengths to the device; nothing grows here, so that tail pages do not matter.
    pub(crate) fn set_lengths(&mut self, lengths: &[u32]) -> Result<()> {
        self.cache.reserve_slots(lengths.len())?;
        self.cache.set_counters(lengths, &vec![0; lengths.len()], &self.gpu.stream)?;
        Ok(())
    }

    /// Brings `plan` to the device.
    pub(crate) fn load(&mut self, plan: &Plan) -> Result<()> {
        let capacity = PlanCapacity::of(plan);
        let mut room = self.cache.reserve(capacity, self.heads.group_size())?;
        room.update(plan, &self.gpu.stream)?;
        self.plan = Some(room);
        Ok(())
    }

    /// Enqueues attention over the plan that was loaded, or the part of it before the merge.
    fn enqueue(&self, part: Part, stream: &Stream) -> Result<(), CudaError> {
        let plan = self.plan.as_ref().expect("a plan is loaded first");
        let buffers =
            AttendBuffers { q: self.q.pointer(), out: self.out.pointer(), lse: self.lse.pointer() };
        let params = &self.params;
        // SAFETY: the buffers hold as many queries as the session was made for, which is what plans of
        // this problem have at most; everything runs on one stream.
        unsafe {
            match part {
                Part::Whole => self.cache.attend(0, plan, &buffers, params, stream.raw()),
                Part::Partial => self.cache.attend_partial(0, plan, &buffers, params, stream.raw()),
            }
        }
    }

    /// Poisons outputs.
    fn poison(&self) -> Result<()> {
        self.out.fill_bytes(u8::MAX, &self.gpu.stream)?;
        self.lse.fill_bytes(u8::MAX, &self.gpu.stream)?;
        Ok(())
    }

    /// What is in the outputs of the first `queries` queries.
    fn outputs(&self, queries: u32) -> Result<Outputs<T>> {
        let rows = (queries * self.heads.q_heads) as usize;
        let mut outputs = Outputs::unwritten(rows, self.heads.head_dim);
        self.out.read(0, &mut outputs.out, &self.gpu.stream)?;
        self.lse.read(0, &mut outputs.lse, &self.gpu.stream)?;
        Ok(outputs)
    }

    /// Attention over the plan that was loaded, into poisoned outputs.
    pub(crate) fn attend(&self, queries: u32, what: &str) -> Result<Outputs<T>> {
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

    /// The same right after `twin`, another session's of the same shape, which leaves the kernels' code in the caches
    /// and nothing of this session's data.
    pub(crate) fn time_with_warm_code(
        &self,
        twin: &Self,
        part: Part,
        repeats: Repeats,
        what: &str,
    ) -> Result<Spread> {
        let mut first = self.gpu.capture(|stream| twin.enqueue(part, stream))?;
        let mut graph = self.gpu.capture(|stream| self.enqueue(part, stream))?;
        // SAFETY: all buffers are the sessions', which outlive the graphs.
        unsafe { self.gpu.time_after(Some(&mut first), &mut graph, repeats, what) }
    }
}
