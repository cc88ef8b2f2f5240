//! The KV cache of one device: pages, counters, and attention over them.

use super::capacity::plan_config;
use super::compacted::CompactedRows;
use super::counters::Counters;
use super::elastic::ElasticPages;
use super::kernels::{AttendPointers, AttentionKernels};
use super::paged::PagedKernels;
use super::scores::Scores;
use super::writers::{Append, CachePointers, Rotary, WriterKernels};
use super::{
    CudaDevice, CudaError, CudaPlan, DeviceBuffer, DevicePtr, Kernel, PlanCapacity, RawStream,
    Stream,
};
use crate::attention::AttentionParams;
use crate::cache::{CacheShape, DType};
use crate::plan::{Grouping, PlanConfig};

/// Moves of tokens that a thread makes one after the other where they may be made in any order.
const APART: u32 = 16;
/// Most blocks that a grid has along y.
const MAX_GRID_Y: u32 = 65_535;

/// Device pointers of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttendBuffers {
    /// `[queries, q_heads, head_dim]`, 16 bits.
    pub q: DevicePtr,
    /// `[queries, q_heads, head_dim]`, 16 bits.
    pub out: DevicePtr,
    /// `[queries, q_heads]`, f32, natural logarithm; [`DevicePtr::NULL`] if it is not wanted.
    pub lse: DevicePtr,
}

/// Pages of all layers and KV heads on one device, and the counters that kernels read.
#[derive(Debug)]
pub struct CudaCache {
    device: CudaDevice,
    shape: CacheShape,
    /// `[layer][page][kv_head][page_elements]`.
    pool: DeviceBuffer<u16>,
    /// Who gives the pool memory, if that comes and goes.
    elastic: Option<ElasticPages>,
    lengths: Counters,
    tail_pages: Counters,
    pub(super) compacted: CompactedRows,
    pub(super) scores: Scores,
    kernels: AttentionKernels,
    writers: WriterKernels,
    pub(super) paged: PagedKernels,
}

impl CudaCache {
    /// Sets pages and `slots` counters (nodes that may be alive at once) aside, zeroed, so that V in
    /// them is finite as it is when kernels have written it, and compiles the attention kernels.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::DType`] for f32, [`CudaError::OutOfMemory`], and those of
    /// [`CudaDevice::kernel`].
    pub fn new(device: &CudaDevice, shape: CacheShape, slots: u32) -> Result<Self, CudaError> {
        Self::with_pool(device, shape, slots, || {
            let pool = DeviceBuffer::uninitialized(device, "KV pages", elements(&shape))?;
            let legacy = Stream::legacy(device);
            pool.fill_bytes(0, &legacy)?;
            // Other streams do not wait for the legacy one: what they write must not be zeroed later.
            legacy.synchronize()?;
            Ok((pool, None))
        })
    }

    /// The same, whose pages have addresses but no memory yet: [`CudaCache::elastic_pages`] gives it, by extents of
    /// [`CudaDevice::extent_pages`], of which `shape.pages` is a multiple.
    ///
    /// # Errors
    /// Those of [`CudaCache::new`], and [`CudaError::Argument`] for another number of pages.
    pub fn elastic(device: &CudaDevice, shape: CacheShape, slots: u32) -> Result<Self, CudaError> {
        Self::with_pool(device, shape, slots, || {
            let pages = ElasticPages::reserve(device, &shape)?;
            let pool = DeviceBuffer::borrowed(device, pages.pointer(), elements(&shape));
            Ok((pool, Some(pages)))
        })
    }

    fn with_pool(
        device: &CudaDevice,
        shape: CacheShape,
        slots: u32,
        pool: impl FnOnce() -> Result<(DeviceBuffer<u16>, Option<ElasticPages>), CudaError>,
    ) -> Result<Self, CudaError> {
        shape.validate_for_kernels()?;
        if shape.dtype == DType::F32 {
            return Err(CudaError::DType { dtype: shape.dtype });
        }
        let kernels = AttentionKernels::new(device, &shape)?;
        let (pool, elastic) = pool()?;
        Ok(Self {
            kernels,
            writers: WriterKernels::new(device, &shape)?,
            paged: PagedKernels::new(device, &shape)?,
            pool,
            elastic,
            lengths: Counters::new(device, "length counters", slots)?,
            tail_pages: Counters::new(device, "tail pages", slots)?,
            compacted: CompactedRows::default(),
            scores: Scores::default(),
            device: device.clone(),
            shape,
        })
    }

    /// The device the cache is on.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }
    /// The cache's dimensions.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }
    /// Number of counters.
    pub fn slots(&self) -> u32 {
        self.lengths.host.len() as u32
    }
    /// All pages: `[layer][page][kv_head][page_elements]`, laid out as [`kernels_gpu::layout`] says.
    pub fn pool(&self) -> &DeviceBuffer<u16> {
        &self.pool
    }
    /// Pages whose memory comes and goes together; 0 where it stays.
    pub(super) fn extent_pages(&self) -> u32 {
        self.elastic.as_ref().map_or(0, ElasticPages::extent_pages)
    }
    /// Who gives the pool memory, if that comes and goes.
    pub fn elastic_pages(&mut self) -> Option<&mut ElasticPages> {
        self.elastic.as_mut()
    }
    /// The attention kernels this cache uses.
    pub fn kernels(&self) -> [&Kernel; 2] {
        self.kernels.all()
    }
    /// The length counters as they are on the device: `[slots]`.
    pub fn lengths(&self) -> &DeviceBuffer<u32> {
        &self.lengths.device
    }

    /// Brings the device's counters to these values ([`lengths`](crate::tree::TokenForest::lengths) and
    /// [`tail_pages`](crate::tree::TokenForest::tail_pages) of the forest), copying what differs; returns
    /// the bytes copied.
    ///
    /// # Errors
    /// [`CudaError::Length`] for more than the cache's slots (nothing is changed), [`CudaError::Driver`].
    pub fn set_counters(
        &mut self,
        lengths: &[u32],
        tail_pages: &[u32],
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        let slots = self.slots() as usize;
        for (argument, got) in [("lengths", lengths.len()), ("tail_pages", tail_pages.len())] {
            if got > slots {
                return Err(CudaError::Length { argument, got, expected: slots });
            }
        }
        Ok(self.lengths.set(lengths, stream)? + self.tail_pages.set(tail_pages, stream)?)
    }

    /// Says that the device's counters have these lengths by now, since [`CudaCache::advance`] ran there:
    /// nothing is copied, and later [`CudaCache::set_counters`] compare with them.
    ///
    /// # Errors
    /// [`CudaError::Length`] for more than the cache's slots.
    pub fn assume_lengths(&mut self, lengths: &[u32]) -> Result<(), CudaError> {
        let expected = self.lengths.host.len();
        match self.lengths.host.get_mut(..lengths.len()) {
            Some(host) => host.copy_from_slice(lengths),
            None => {
                return Err(CudaError::Length {
                    argument: "lengths",
                    got: lengths.len(),
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Enqueues one more token for each counter that `targets: [count]` (live
    /// [`AppendTarget`](kernels_gpu::abi::AppendTarget)s) names: once a decode step, before the first
    /// layer's append. Captured, it lets a graph decode on without any host work within pages.
    ///
    /// # Safety
    /// `targets` is valid until the work is done, names counters of this cache, none twice, and `stream` is
    /// a stream of the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Launch`].
    pub unsafe fn advance(
        &self,
        targets: DevicePtr,
        count: u32,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.cache_pointers(self.pool.pointer());
        // SAFETY: the caller's.
        unsafe { self.writers.advance(targets, count, &at, stream) }
    }

    /// Enqueues K and V of new tokens of one layer.
    ///
    /// # Safety
    /// The arrays are valid for their documented shapes until the work is done and 16-byte aligned,
    /// targets are distinct and name pages and counters of this cache, and `stream` is a stream of the
    /// device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Launch`].
    pub unsafe fn append(
        &self,
        layer: u32,
        append: &Append,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.layer_pointers(layer)?;
        // SAFETY: the caller's.
        unsafe { self.writers.append(append, &at, stream) }
    }

    /// As [`CudaCache::append`], and rotates each row of K by its position
    /// ([`RotaryTable`](crate::attention::RotaryTable) says how) on its way.
    ///
    /// # Safety
    /// As [`CudaCache::append`]; the arrays of `rotary` too are valid for their documented shapes until
    /// the work is done, the tables are 16-byte aligned, and every position is one of theirs.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Launch`].
    pub unsafe fn append_rotated(
        &self,
        layer: u32,
        append: &Append,
        rotary: &Rotary,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.layer_pointers(layer)?;
        // SAFETY: the caller's.
        unsafe { self.writers.append_rope(append, rotary, &at, stream) }
    }

    /// Enqueues moves of tokens, of all layers: `moves: [count]`
    /// [`TokenMove`](kernels_gpu::abi::TokenMove)s, as if one after the other.
    ///
    /// # Safety
    /// `moves` is valid until the work is done, its places lie within the cache, and `stream` is a stream
    /// of the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Launch`].
    pub unsafe fn copy(
        &self,
        moves: DevicePtr,
        count: u32,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.copy_shares(moves, [count, count], stream) }
    }

    /// As [`CudaCache::copy`] where no target is a source: in any order.
    ///
    /// # Safety
    /// As there; no target is a source, nor another's target.
    ///
    /// # Errors
    /// As there.
    pub(super) unsafe fn copy_apart(
        &self,
        moves: DevicePtr,
        count: u32,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let share = APART.max(count.div_ceil(MAX_GRID_Y));
        // SAFETY: the caller's.
        unsafe { self.copy_shares(moves, [count, share], stream) }
    }

    /// # Safety
    /// As [`CudaCache::copy_apart`]; where one share has all of them as [`CudaCache::copy`].
    unsafe fn copy_shares(
        &self,
        moves: DevicePtr,
        [count, share]: [u32; 2],
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.cache_pointers(self.pool.pointer());
        // SAFETY: the caller's.
        unsafe {
            self.writers.copy(moves, [count, share], &at, stream)?;
            self.compacted.move_biases(moves, count, self.shape.kv_heads, stream)
        }
    }

    fn cache_pointers(&self, pool: DevicePtr) -> CachePointers {
        CachePointers {
            pool,
            lengths: self.lengths.device.pointer(),
            tail_pages: self.tail_pages.device.pointer(),
        }
    }

    /// Makes sure that there are `slots` counters. Those that are added are zero; if there were fewer, all
    /// have moved, and graphs captured before are not to be launched again.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn reserve_slots(&mut self, slots: usize) -> Result<(), CudaError> {
        // Both or none: they have as many slots.
        let lengths = self.lengths.grown(&self.device, slots)?;
        let tail_pages = self.tail_pages.grown(&self.device, slots)?;
        if let (Some(lengths), Some(tail_pages)) = (lengths, tail_pages) {
            (self.lengths, self.tail_pages) = (lengths, tail_pages);
        }
        Ok(())
    }

    /// How to plan for this cache: as many shares as fill the device, items that the kernels have room for.
    pub fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        plan_config(&self.device, &self.shape, grouping, group_size)
    }

    /// Room on the device for plans within `capacity` whose queries have `group_size` heads a KV head.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn reserve(&self, capacity: PlanCapacity, group_size: u32) -> Result<CudaPlan, CudaError> {
        CudaPlan::new(&self.device, &self.shape, capacity, group_size)
    }

    /// Enqueues attention of one layer: the plan's queries over their pages. Allocates nothing and copies
    /// nothing, so it can be captured; a graph captured here stays right for every plan that is put in
    /// `plan`'s place by [`CudaPlan::update`].
    ///
    /// # Safety
    /// - The buffers are valid for their documented shapes, for as many queries as the plan has when the
    ///   work runs, until it is done; `q` and `out` are 16-byte aligned.
    /// - `stream` is a stream of the device's primary context, and nothing else that uses `plan` runs at
    ///   the same time on another stream.
    /// - The plan's pages and length counters are the cache's.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::PlanShape`] for a plan reserved by a cache of other heads,
    /// [`CudaError::PlanMixed`], [`CudaError::Launch`].
    pub unsafe fn attend(
        &self,
        layer: u32,
        plan: &CudaPlan,
        buffers: &AttendBuffers,
        params: &AttentionParams,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's; the merge's pointers are those of attention.
        unsafe {
            self.attend_partial(layer, plan, buffers, params, stream)?;
            let pointers = self.pointers(plan, buffers)?;
            self.kernels.merge(&plan.images, plan.group_size, &pointers, stream)
        }
    }

    /// [`CudaCache::attend`] without its merge, to be timed alone: rows that one work item has alone go to `buffers`,
    /// those that several share to the plan's partial results.
    ///
    /// # Safety
    /// As [`CudaCache::attend`].
    ///
    /// # Errors
    /// As [`CudaCache::attend`].
    pub unsafe fn attend_partial(
        &self,
        layer: u32,
        plan: &CudaPlan,
        buffers: &AttendBuffers,
        params: &AttentionParams,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let pointers = AttendPointers {
            pool: self.plane(layer)?,
            compacted: self.compacted.at(&self.shape, layer),
            ..self.pointers(plan, buffers)?
        };
        // SAFETY: the caller vouches for buffers and stream; pool, counters and partials are ours and as
        // large as the plan's capacity says.
        unsafe { self.kernels.attend(plan, &pointers, params, stream) }
    }

    fn pointers(
        &self,
        plan: &CudaPlan,
        buffers: &AttendBuffers,
    ) -> Result<AttendPointers, CudaError> {
        plan.check_for(&self.device, &self.shape)?;
        Ok(AttendPointers {
            q: buffers.q,
            pool: self.pool.pointer(),
            lengths: self.lengths.device.pointer(),
            out: buffers.out,
            lse: buffers.lse,
            partial_o: plan.partial_o.pointer(),
            partial_lse: plan.partial_lse.pointer(),
            ..AttendPointers::default()
        })
    }

    /// Where `layer`'s pages and the counters are, for kernels of one's own.
    ///
    /// # Errors
    /// [`CudaError::Shape`].
    pub fn layer_pointers(&self, layer: u32) -> Result<CachePointers, CudaError> {
        Ok(self.cache_pointers(self.plane(layer)?))
    }

    /// Where a layer's pages begin.
    fn plane(&self, layer: u32) -> Result<DevicePtr, CudaError> {
        self.shape.check_layer(layer)?;
        Ok(self.pool.at(layer as usize * self.shape.plane_elements() as usize))
    }
}

/// Elements of all pages and layers.
fn elements(shape: &CacheShape) -> usize {
    (u64::from(shape.layers) * shape.plane_elements()) as usize
}
