//! The [`Backend`] of a GPU: rows in the host's memory or on the device.
//!
//! Nothing waits for the device but the reading of results into the host's memory. Rows on the device are ordered
//! against the caller's stream by events; what is the same as in the call before (plan, counters, targets, positions,
//! rotary tables) is not copied again.

mod transfer;

use bytemuck::Pod;

use super::{
    Append, AttendBuffers, CudaCache, CudaDevice, CudaError, CudaPlan, DeviceBuffer,
    DeviceElements, DevicePtr, Event, PlanCapacity, RawStream, Rotary, Stream,
};
use crate::attention::{
    Attend, Backend, BackendError, Counters, PagedTokens, Rotation, check_append, check_attend,
    check_export, check_import, check_moves, check_plan, on_host,
};
use crate::cache::{CacheShape, Elements, ElementsMut};
use crate::plan::{Grouping, Plan, PlanConfig, shares_for};
use kernels_gpu::abi::{AppendTarget, TokenMove};

/// Room for plans that grow: a plan that outgrows its room takes this many times what it needs.
const PLAN_HEADROOM: u32 = 2;

/// Plans that are on the device at a time.
const PLANS: usize = 4;

/// A cache on a GPU.
#[derive(Debug)]
pub struct CudaBackend {
    stream: Stream,
    /// Says how far a stream has come to another.
    passed: Event,
    cache: CudaCache,
    /// The plan used last comes last.
    plans: Vec<Loaded>,
    q: Scratch<u16>,
    out: Scratch<u16>,
    lse: Scratch<f32>,
    k: Scratch<u16>,
    v: Scratch<u16>,
    targets: Mirror<u32>,
    positions: Mirror<u32>,
    /// The rotary table that is on the device.
    table: Option<Table>,
    moves: Scratch<TokenMove>,
}

/// A plan that is on the device.
#[derive(Debug)]
struct Loaded {
    plan: CudaPlan,
    /// Counters that the plan was checked against.
    slots: usize,
}

/// A rotary table on the device.
#[derive(Debug)]
struct Table {
    id: u64,
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
}

/// A device buffer that grows.
#[derive(Debug)]
struct Scratch<T> {
    what: &'static str,
    buffer: Option<DeviceBuffer<T>>,
}

/// A device buffer with the host's copy of what is in it.
#[derive(Debug)]
struct Mirror<T> {
    scratch: Scratch<T>,
    held: Vec<T>,
}

impl CudaBackend {
    /// A zeroed cache of `shape` on `device`, with a stream of its own.
    ///
    /// # Errors
    /// Those of [`CudaCache::new`].
    pub fn new(device: &CudaDevice, shape: CacheShape) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(device)?,
            passed: Event::new(device)?,
            cache: CudaCache::new(device, shape, 64)?,
            plans: Vec::new(),
            q: Scratch::new("queries"),
            out: Scratch::new("outputs"),
            lse: Scratch::new("LSEs"),
            k: Scratch::new("keys to append"),
            v: Scratch::new("values to append"),
            targets: Mirror::new("append targets"),
            positions: Mirror::new("positions"),
            table: None,
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

    /// What an append reads, brought to the device where it is not.
    fn sources(
        &mut self,
        targets: &[AppendTarget],
        [k, v]: [Elements<'_>; 2],
    ) -> Result<Append, BackendError> {
        let stream = &self.stream;
        Ok(Append {
            targets: self.targets.fill(stream, targets)?.pointer(),
            count: targets.len() as u32,
            k: self.k.source("k", k, stream)?,
            v: self.v.source("v", v, stream)?,
        })
    }

    /// Positions and table of a rotation on the device.
    fn rotary(&mut self, rotation: Rotation<'_>) -> Result<Rotary, CudaError> {
        let stream = &self.stream;
        let positions = self.positions.fill(stream, rotation.positions)?.pointer();
        let id = rotation.table.id();
        if self.table.as_ref().is_none_or(|table| table.id != id) {
            // What reads the old one may be under way: freeing waits for it.
            let device = stream.device();
            let copy = |what, values: &[f32]| DeviceBuffer::from_slice(device, what, values);
            self.table = Some(Table {
                id,
                cos: copy("rotary cosines", rotation.table.cos())?,
                sin: copy("rotary sines", rotation.table.sin())?,
            });
        }
        let table = self.table.as_ref().expect("it was just made");
        Ok(Rotary {
            positions,
            cos: table.cos.pointer(),
            sin: table.sin.pointer(),
        })
    }

    /// Brings the plan to the device, unless it is there; it then is the last of `plans`.
    fn load(&mut self, plan: &Plan, slots: usize) -> Result<(), BackendError> {
        let loaded = |on: &Loaded| on.plan.holds(plan) && on.slots <= slots;
        if let Some(at) = self.plans.iter().position(loaded) {
            self.plans[at..].rotate_left(1);
            return Ok(());
        }
        check_plan(self.cache.shape(), plan, slots)?;
        let needed = PlanCapacity::of(plan);
        let fits = |on: &Loaded| {
            on.plan.capacity().holds(&needed).is_ok()
                && on.plan.capacity().shares == needed.shares
                && on.plan.group_size() == plan.group_size()
        };
        let fitting = self.plans.iter().position(fits);
        let full = self.plans.len() >= PLANS;
        let mut room = match fitting.filter(|_| full).or(full.then_some(0)) {
            // On one stream, so what still reads the old plan comes before the copy.
            Some(at) => Some(self.plans.remove(at)).filter(fits).map(|on| on.plan),
            None => None,
        };
        let mut room = match room.take() {
            Some(room) => room,
            None => self
                .cache
                .reserve(needed.scaled(PLAN_HEADROOM), plan.group_size())?,
        };
        room.update(plan, &self.stream)?;
        self.plans.push(Loaded { plan: room, slots });
        Ok(())
    }

    /// Lets the cache's stream come after what the rows' streams have by now.
    fn enter(&self, rows: &[Option<DeviceElements>]) -> Result<(), CudaError> {
        self.each_stream(rows, |foreign| {
            self.passed.record(foreign)?;
            self.stream.wait(&self.passed)
        })
    }

    /// Lets the rows' streams come after what the cache's has by now.
    fn leave(&self, rows: &[Option<DeviceElements>]) -> Result<(), CudaError> {
        self.each_stream(rows, |foreign| {
            self.passed.record(&self.stream)?;
            foreign.wait(&self.passed)
        })
    }

    fn each_stream(
        &self,
        rows: &[Option<DeviceElements>],
        mut act: impl FnMut(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut done: Vec<RawStream> = vec![self.stream.raw()];
        for rows in rows.iter().flatten() {
            if done.contains(&rows.stream) {
                continue;
            }
            done.push(rows.stream);
            // SAFETY: whoever made the rows vouched for their stream.
            let foreign = unsafe { Stream::borrow_raw(self.cache.device(), rows.stream) };
            act(&foreign)?;
        }
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
        let rows = [k.on_device(), v.on_device()];
        let append = self.sources(targets, [k, v])?;
        self.enter(&rows)?;
        // SAFETY: the buffers hold a row for each target, and targets name pages and counters that exist
        // (checked above); our buffers are used on one stream only, and the caller's are kept by their promise.
        unsafe { self.cache.append(layer, &append, self.stream.raw()) }?;
        Ok(self.leave(&rows)?)
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
        let rows = [k.on_device(), v.on_device()];
        let append = self.sources(targets, [k, v])?;
        let rotary = self.rotary(rotation)?;
        self.enter(&rows)?;
        // SAFETY: as in `append`; there is a position for each target, and its row of the tables.
        unsafe {
            self.cache
                .append_rotated(layer, &append, &rotary, self.stream.raw())
        }?;
        Ok(self.leave(&rows)?)
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(self.shape(), moves)?;
        let stream = &self.stream;
        let on_device = self.moves.fill(stream, moves)?;
        // SAFETY: pages were checked above, and the moves' buffer is used on this stream only.
        unsafe {
            self.cache
                .copy(on_device.pointer(), moves.len() as u32, stream.raw())
        }?;
        Ok(())
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        check_import(self.shape(), paged, foreign)?;
        let [k, v] = foreign.map(|foreign| foreign.bytes().map(bytemuck::cast_slice));
        let foreign = [on_host("k", k)?, on_host("v", v)?];
        Ok(self.import_checked(paged, foreign)?)
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        check_export(self.shape(), paged, &foreign)?;
        let [k, v] = foreign.map(|foreign| foreign.into_bytes().map(bytemuck::cast_slice_mut));
        let foreign = [on_host("k", k)?, on_host("v", v)?];
        Ok(self.export_checked(paged, foreign)?)
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(self.shape(), &call)?;
        self.set_counters(call.counters)?;
        self.load(call.plan, call.counters.lengths.len())?;
        let lse_rows = call.lse.as_ref().and_then(ElementsMut::on_device);
        let rows = [call.q.on_device(), call.out.on_device(), lse_rows];
        let stream = &self.stream;
        let device = self.cache.device();
        let lse = match &call.lse {
            Some(lse) => self.lse.target("lse", lse, device)?,
            None => DevicePtr::NULL,
        };
        let buffers = AttendBuffers {
            q: self.q.source("q", call.q, stream)?,
            out: self.out.target("out", &call.out, device)?,
            lse,
        };
        self.enter(&rows)?;
        let on = self.plans.last().expect("the plan was just loaded");
        // SAFETY: the buffers have the lengths that were checked above, the plan's pages and counters
        // were checked when it was loaded; buffers of ours are used on one stream only, and the caller's are kept by
        // their promise.
        unsafe {
            self.cache
                .attend(call.layer, &on.plan, &buffers, &call.params, stream.raw())
        }?;
        self.leave(&rows)?;
        if let Some(bytes) = call.out.into_bytes() {
            self.out.read(bytemuck::cast_slice_mut(bytes), stream)?;
        }
        if let Some(lse) = call.lse.and_then(ElementsMut::into_typed::<f32>) {
            self.lse.read(lse, stream)?;
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

    /// The buffer with `data` at its front, once the stream is there.
    fn fill(&mut self, stream: &Stream, data: &[T]) -> Result<&DeviceBuffer<T>, CudaError> {
        let buffer = self.reserve(stream.device(), data.len())?;
        buffer.upload(0, data, stream)?;
        Ok(buffer)
    }

    /// Where `rows` are on the device: the caller's, or a copy in the buffer.
    fn source(
        &mut self,
        argument: &'static str,
        rows: Elements<'_>,
        stream: &Stream,
    ) -> Result<DevicePtr, BackendError> {
        match (rows.on_device(), rows.bytes()) {
            (Some(rows), _) => aligned(argument, rows),
            (None, bytes) => {
                let data = bytemuck::cast_slice(bytes.unwrap_or_default());
                Ok(self.fill(stream, data)?.pointer())
            }
        }
    }

    /// Where results go on the device: the caller's rows, or the buffer.
    fn target(
        &mut self,
        argument: &'static str,
        rows: &ElementsMut<'_>,
        device: &CudaDevice,
    ) -> Result<DevicePtr, BackendError> {
        match rows.on_device() {
            Some(rows) => aligned(argument, rows),
            None => Ok(self.reserve(device, rows.len())?.pointer()),
        }
    }

    /// Waits, and reads the front of the buffer.
    fn read(&self, data: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        match &self.buffer {
            Some(buffer) => buffer.read(0, data, stream),
            None => Ok(()),
        }
    }
}

impl<T: Pod + PartialEq> Mirror<T> {
    fn new(what: &'static str) -> Self {
        Self {
            scratch: Scratch::new(what),
            held: Vec::new(),
        }
    }

    /// The buffer with `data` at its front; nothing is copied if it is there.
    fn fill(&mut self, stream: &Stream, data: &[T]) -> Result<&DeviceBuffer<T>, CudaError> {
        if self.held == data {
            return self.scratch.reserve(stream.device(), data.len());
        }
        self.held.clear();
        let buffer = self.scratch.fill(stream, data)?;
        self.held.extend_from_slice(data);
        Ok(buffer)
    }
}

fn aligned(argument: &'static str, rows: DeviceElements) -> Result<DevicePtr, BackendError> {
    let address = rows.pointer.0;
    if !address.is_multiple_of(16) {
        return Err(BackendError::Misaligned { argument, address });
    }
    Ok(rows.pointer)
}
