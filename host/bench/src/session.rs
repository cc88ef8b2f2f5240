//! One problem on a GPU: its cache, its queries, and attention over them.

use anyhow::Result;
use deft::cuda::{AttendBuffers, CudaCache, CudaError, CudaPlan, DeviceBuffer, Stream};

use crate::compare::{Outputs, UNWRITTEN};
use crate::gpu::Gpu;
use crate::tensors::{Heads, HostPool};

#[derive(Debug)]
pub(crate) struct Session<'g> {
    pub(crate) gpu: &'g Gpu,
    pub(crate) cache: CudaCache,
    pub(crate) heads: Heads,
    pub(crate) q: DeviceBuffer<u16>,
    out: DeviceBuffer<u16>,
    lse: DeviceBuffer<f32>,
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
        let pages = (pool.elements.len() / heads.page_elements()) as u32;
        let cache = CudaCache::new(&gpu.device, heads.shape(pages), slots.max(1))?;
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
        };
        session.q.write(0, q, &gpu.stream)?;
        Ok(session)
    }

    /// Enqueues attention over `plan`.
    pub(crate) fn enqueue(&self, plan: &CudaPlan, stream: &Stream) -> Result<(), CudaError> {
        let buffers = AttendBuffers {
            q: self.q.pointer(),
            out: self.out.pointer(),
            lse: self.lse.pointer(),
        };
        // SAFETY: the buffers hold as many queries as the session was made for, which is what plans of
        // this problem have at most; everything runs on one stream.
        unsafe {
            self.cache
                .attend(0, plan, &buffers, &self.heads.params, stream.raw())
        }
    }

    /// Poisons outputs.
    pub(crate) fn poison(&self) -> Result<()> {
        let [byte, _] = UNWRITTEN.to_le_bytes();
        self.out.fill_bytes(byte, &self.gpu.stream)?;
        self.lse.fill_bytes(byte, &self.gpu.stream)?;
        Ok(())
    }

    /// What is in the outputs of the first `queries` queries.
    pub(crate) fn outputs(&self, queries: u32) -> Result<Outputs> {
        let mut outputs = Outputs {
            out: vec![0; queries as usize * self.heads.query_elements()],
            lse: vec![0.0; (queries * self.heads.q_heads()) as usize],
        };
        self.out.read(0, &mut outputs.out, &self.gpu.stream)?;
        self.lse.read(0, &mut outputs.lse, &self.gpu.stream)?;
        Ok(outputs)
    }

    /// Attention over `plan` into poisoned outputs.
    pub(crate) fn attend(&self, plan: &CudaPlan, queries: u32, what: &str) -> Result<Outputs> {
        self.poison()?;
        self.enqueue(plan, &self.gpu.stream)?;
        self.gpu.settle(what)?;
        self.outputs(queries)
    }
}
