//! The [`Backend`] of a GPU: host slices in, host slices out.
//!
//! For callers whose tensors are on the device already, [`CudaCache`] takes their pointers instead.

mod transfer;

use bytemuck::Pod;

use super::{
    Append, AttendBuffers, CudaCache, CudaDevice, CudaError, CudaPlan, DeviceBuffer, PlanCapacity,
    Rotary, Stream,
};
use crate::attention::{
    Attend, Backend, BackendError, Counters, PagedTokens, Rotation, check_append, check_attend,
    check_export, check_import, check_moves, check_plan,
};
use crate::cache::{CacheShape, Elements, ElementsMut};
use crate::plan::{Grouping, Plan, PlanConfig, shares_for};
use kernels_gpu::abi::{AppendTarget, TokenMove};

/// Room for plans that grow: a plan that outgrows its room takes this many times what it needs.
const PLAN_HEADROOM: u32 = 2;

/// A cache on a GPU, used from the host.
#[derive(Debug)]
pub struct CudaBackend {
    stream: Stream,
    cache: CudaCache,
    plan: Option<Loaded>,
    q: Scratch<u16>,
    out: Scratch<u16>,
    lse: Scratch<f32>,
    k: Scratch<u16>,
    v: Scratch<u16>,
    targets: Scratch<u32>,
    positions: Scratch<u32>,
    cos: Scratch<f32>,
    sin: Scratch<f32>,
    moves: Scratch<TokenMove>,
}

/// The plan that is on the device.
#[derive(Debug)]
struct Loaded {
    plan: CudaPlan,
    /// Counters that the plan was checked against.
    slots: usize,
}

/// A device buffer that grows.
#[derive(Debug)]
struct Scratch<T> {
    what: &'static str,
    buffer: Option<DeviceBuffer<T>>,
}

impl CudaBackend {
    /// A zeroed cache of `shape` on `device`, with a stream of its own.
    ///
    /// # Errors
    /// Those of [`CudaCache::new`].
    pub fn new(device: &CudaDevice, shape: CacheShape) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(device)?,
            cache: CudaCache::new(device, shape, 64)?,
            plan: None,
            q: Scratch::new("queries"),
            out: Scratch::new("outputs"),
            lse: Scratch::new("LSEs"),
            k: Scratch::new("keys to append"),
            v: Scratch::new("values to append"),
            targets: Scratch::new("append targets"),
            positions: Scratch::new("positions"),
            cos: Scratch::new("rotary cosines"),
            sin: Scratch::new("rotary sines"),
            moves: Scratch::new("token moves"),
        })
    }

    /// The cache, for calls with device pointers.
    pub fn cache(&self) -> &CudaCache {
        &self.cache
    }

    /// Brings the counters to the device, with room for as many as there are.
    fn set_counters(&mut self, counters: Counters<'_>) -> Result<(), CudaError> {
        let slots = counters.lengths.len().max(counters.tail_pages.len());
        self.cache.reserve_slots(slots)?;
        self.cache
            .set_counters(counters.lengths, counters.tail_pages, &self.stream)
            .map(drop)
    }

    /// Brings the rows of an append to the device.
    fn upload(
        &mut self,
        targets: &[AppendTarget],
        [k, v]: [Elements<'_>; 2],
    ) -> Result<Append, CudaError> {
        let stream = &self.stream;
        let k = self.k.fill(stream, bytemuck::cast_slice(k.bytes()))?;
        let v = self.v.fill(stream, bytemuck::cast_slice(v.bytes()))?;
        let on_device = self.targets.fill(stream, targets)?;
        Ok(Append {
            targets: on_device.pointer(),
            count: targets.len() as u32,
            k: k.pointer(),
            v: v.pointer(),
        })
    }

    /// Brings those rows of the tables that `rotation` has positions for to the device, one an entry,
    /// and positions that say so.
    fn upload_rotation(&mut self, rotation: Rotation<'_>) -> Result<Rotary, CudaError> {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for &position in rotation.positions {
            let angles = rotation.table.angles(position);
            cos.extend_from_slice(angles.0);
            sin.extend_from_slice(angles.1);
        }
        let positions: Vec<u32> = (0..rotation.positions.len() as u32).collect();
        let stream = &self.stream;
        Ok(Rotary {
            positions: self.positions.fill(stream, &positions)?.pointer(),
            cos: self.cos.fill(stream, &cos)?.pointer(),
            sin: self.sin.fill(stream, &sin)?.pointer(),
        })
    }

    /// Brings the plan to the device, unless it is there.
    fn load(&mut self, plan: &Plan, slots: usize) -> Result<(), BackendError> {
        let loaded = |on: &Loaded| on.plan.holds(plan) && on.slots <= slots;
        if self.plan.as_ref().is_some_and(loaded) {
            return Ok(());
        }
        check_plan(self.cache.shape(), plan, slots)?;
        let needed = PlanCapacity::of(plan);
        let fits = |on: &Loaded| {
            on.plan.capacity().holds(&needed).is_ok()
                && on.plan.capacity().shares == needed.shares
                && on.plan.group_size() == plan.group_size()
        };
        let mut room = match self.plan.take().filter(fits) {
            Some(on) => on.plan,
            None => self
                .cache
                .reserve(needed.scaled(PLAN_HEADROOM), plan.group_size())?,
        };
        room.update(plan, &self.stream)?;
        self.plan = Some(Loaded { plan: room, slots });
        Ok(())
    }
}

impl Backend for CudaBackend {
    fn shape(&self) -> &CacheShape {
        self.cache.shape()
    }

    fn name(&self) -> String {
        format!("CUDA ({})", self.cache.device().describe())
    }

    fn max_group_size(&self) -> u32 {
        kernels_gpu::attention::tile::max_rows(self.shape().head_dim)
    }

    fn shares(&self) -> u32 {
        shares_for(self.cache.device().multiprocessors(), self.shape().kv_heads)
    }

    fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        self.cache.plan_config(grouping, group_size)
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        check_append(self.shape(), layer, targets, counters, [k, v], None)?;
        self.set_counters(counters)?;
        let append = self.upload(targets, [k, v])?;
        let stream = &self.stream;
        // SAFETY: the buffers hold a row for each target, targets name pages and counters that exist
        // (checked above), and the wait below keeps everything alive.
        unsafe { self.cache.append(layer, &append, stream.raw()) }?;
        Ok(stream.synchronize()?)
    }

    fn append_rotated(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
        rotation: Rotation<'_>,
    ) -> Result<(), BackendError> {
        let rows = [k, v];
        check_append(self.shape(), layer, targets, counters, rows, Some(rotation))?;
        self.set_counters(counters)?;
        let append = self.upload(targets, rows)?;
        let rotary = self.upload_rotation(rotation)?;
        let stream = &self.stream;
        // SAFETY: as in `append`; there is a position for each target, and its row of the tables.
        unsafe {
            self.cache
                .append_rotated(layer, &append, &rotary, stream.raw())
        }?;
        Ok(stream.synchronize()?)
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(self.shape(), moves)?;
        let stream = &self.stream;
        let on_device = self.moves.fill(stream, moves)?;
        // SAFETY: pages were checked above, and the wait below keeps the moves alive.
        unsafe {
            self.cache
                .copy(on_device.pointer(), moves.len() as u32, stream.raw())
        }?;
        Ok(stream.synchronize()?)
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        check_import(self.shape(), paged, foreign)?;
        let foreign = foreign.map(|foreign| bytemuck::cast_slice(foreign.bytes()));
        Ok(self.import_checked(paged, foreign)?)
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        check_export(self.shape(), paged, &foreign)?;
        let foreign = foreign.map(|foreign| bytemuck::cast_slice_mut(foreign.into_bytes()));
        Ok(self.export_checked(paged, foreign)?)
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(self.shape(), &call)?;
        self.set_counters(call.counters)?;
        self.load(call.plan, call.counters.lengths.len())?;
        let Some(on) = &self.plan else {
            unreachable!("the plan was just loaded");
        };
        let stream = &self.stream;
        let q = self.q.fill(stream, bytemuck::cast_slice(call.q.bytes()))?;
        let out = self
            .out
            .reserve(stream.device(), call.out.as_elements().len())?;
        let lse = match &call.lse {
            Some(lse) => Some(self.lse.reserve(stream.device(), lse.len())?),
            None => None,
        };
        let buffers = AttendBuffers {
            q: q.pointer(),
            out: out.pointer(),
            lse: lse.map(DeviceBuffer::pointer).unwrap_or_default(),
        };
        // SAFETY: the buffers have the lengths that were checked above, the plan's pages and counters
        // were checked when it was loaded, and the reads below wait for the work.
        unsafe {
            self.cache
                .attend(call.layer, &on.plan, &buffers, &call.params, stream.raw())
        }?;
        let bytes = call.out.into_bytes();
        out.read(0, bytemuck::cast_slice_mut(bytes), stream)?;
        if let (Some(lse), Some(on_device)) = (call.lse, lse) {
            on_device.read(0, lse, stream)?;
        }
        Ok(())
    }
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        Self::Device(Box::new(error))
    }
}

impl<T: Pod> Scratch<T> {
    fn new(what: &'static str) -> Self {
        Self { what, buffer: None }
    }

    /// The buffer, at least `len` long.
    fn reserve(&mut self, device: &CudaDevice, len: usize) -> Result<&DeviceBuffer<T>, CudaError> {
        if self.buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
            // The old one goes first: both together may not fit.
            self.buffer = None;
            let room = len.next_power_of_two();
            self.buffer = Some(DeviceBuffer::uninitialized(device, self.what, room)?);
        }
        Ok(self.buffer.as_ref().expect("it was just made"))
    }

    /// The buffer with `data` at its front.
    fn fill(&mut self, stream: &Stream, data: &[T]) -> Result<&DeviceBuffer<T>, CudaError> {
        let buffer = self.reserve(stream.device(), data.len())?;
        buffer.write(0, data, stream)?;
        Ok(buffer)
    }
}
