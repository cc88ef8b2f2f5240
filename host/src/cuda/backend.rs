//! The [`Backend`] of a GPU: rows in the host's memory or on the device.
//!
//! Nothing waits for the device but the reading of results into the host's memory. Rows on the device are ordered
//! against the caller's stream by events; what is the same as in the call before (plan, counters, targets, positions,
//! rotary tables) is not copied again.

mod append;
mod elastic;
mod graph;
mod loader;
mod mirror;
mod order;
mod padded;
mod plans;
mod rotary;
mod scores;
mod transfer;

use std::ops::Range;
use std::sync::Arc;

use self::graph::StepInputs;
use self::loader::Loader;
use self::mirror::{Mirror, Scratch};
use self::padded::{PaddedBuffers, Padding};
use self::rotary::Table;
use super::pinned::PinnedBytes;
use super::{AttendBuffers, CudaCache, CudaDevice, CudaError, CudaPlan, DevicePtr, Event, Stream};
use crate::attention::{
    Attend, Backend, BackendError, Compact, Counters, ElasticMemory, HostBytes, PageLoader,
    PagedTokens, Rotation, Score, check_attend, check_cells, check_compact, check_export,
    check_import, check_moves, check_pages, check_score, on_host, staged,
};
use crate::cache::{CacheShape, Elements, ElementsMut, PageId};
use crate::format::KvFormat;
use crate::plan::{Grouping, PlanConfig, shares_for};
use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS, RowSource, RowTarget, TokenMove};

pub(crate) use self::graph::{RecordedStep, ScoreCall, Seen, StepCall};
pub(super) use self::mirror::aligned;

/// Plans that are on the device at a time.
const PLANS: usize = 4;

/// A cache on a GPU.
#[derive(Debug)]
pub struct CudaBackend {
    stream: Arc<Stream>,
    /// Says how far a stream has come to another.
    passed: Event,
    /// Of rows as they come in and go out; that of pages is the cache's.
    shape: CacheShape,
    cache: CudaCache,
    /// Where the two differ.
    padded: Option<PaddedBuffers>,
    /// The plan used last comes last.
    plans: Vec<CudaPlan>,
    q: Scratch<u16>,
    out: Scratch<u16>,
    lse: Scratch<f32>,
    k: Scratch<u16>,
    v: Scratch<u16>,
    targets: Mirror<u32>,
    positions: Mirror<u32>,
    /// The rotary tables that are on the device; the one used last comes last.
    tables: Vec<Arc<Table>>,
    moves: Scratch<TokenMove>,
    row_targets: Scratch<RowTarget>,
    row_sources: Scratch<RowSource>,
    visible: Mirror<u32>,
    /// Where the rows of the calls since [`CudaBackend::look`] were.
    seen: Seen,
    /// What the launches of a step that is being captured read.
    capturing: Option<StepInputs>,
}

impl CudaBackend {
    /// A zeroed cache of `shape` on `device`, with a stream of its own. Heads that there are no kernels for are padded
    /// ([`CacheShape::padded`]) on their way in, and cut on their way out.
    ///
    /// # Errors
    /// Those of [`CudaCache::new`].
    pub fn new(device: &CudaDevice, shape: CacheShape) -> Result<Self, CudaError> {
        Self::of(device, shape, CudaCache::new)
    }

    /// The same for an elastic store.
    ///
    /// # Errors
    /// Those of [`CudaCache::elastic`].
    pub fn elastic(device: &CudaDevice, shape: CacheShape) -> Result<Self, CudaError> {
        Self::of(device, shape, CudaCache::elastic)
    }

    fn of(
        device: &CudaDevice,
        shape: CacheShape,
        cache: impl FnOnce(&CudaDevice, CacheShape, u32) -> Result<CudaCache, CudaError>,
    ) -> Result<Self, CudaError> {
        shape.validate()?;
        Ok(Self {
            shape,
            padded: Padding::new(device, &shape)?.map(PaddedBuffers::new),
            stream: Arc::new(Stream::new(device)?),
            passed: Event::new(device)?,
            cache: cache(device, shape.padded(), 64)?,
            plans: Vec::new(),
            q: Scratch::new("queries"),
            out: Scratch::new("outputs"),
            lse: Scratch::new("LSEs"),
            k: Scratch::new("keys to append"),
            v: Scratch::new("values to append"),
            targets: Mirror::new("append targets"),
            positions: Mirror::new("positions"),
            tables: Vec::new(),
            moves: Scratch::new("token moves"),
            row_targets: Scratch::new("rows to compact"),
            row_sources: Scratch::new("sources of rows"),
            visible: Mirror::new("visible tokens"),
            seen: Seen::default(),
            capturing: None,
        })
    }

    /// The cache, for calls with device pointers: of rows padded as its shape says.
    pub fn cache(&self) -> &CudaCache {
        &self.cache
    }

    /// The stream that the cache's work is on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Brings the counters to the device, with room for as many as there are.
    fn set_counters(&mut self, counters: Counters<'_>) -> Result<(), CudaError> {
        if self.capturing.is_some() {
            return Ok(());
        }
        let slots = counters.lengths.len().max(counters.tail_pages.len());
        self.cache.reserve_slots(slots)?;
        if let Some(directory) = counters.directory {
            self.cache.set_directory(directory, &self.stream)?;
        }
        self.cache.set_counters(counters.lengths, counters.tail_pages, &self.stream).map(drop)
    }
}

impl Backend for CudaBackend {
    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn stored(&self) -> CacheShape {
        *self.cache.shape()
    }

    fn name(&self) -> String {
        format!("CUDA ({})", self.cache.device().describe())
    }

    fn check_format(&self, format: KvFormat) -> Result<(), BackendError> {
        let page = self.stored().page();
        format.check(self.shape.page()).map_err(BackendError::FormatShape)?;
        if self.padded.is_some() && !format.is_by_element() {
            let (head_dim, padded) = (self.shape.head_dim, page.head_dim);
            return Err(BackendError::PaddedFormat { format, head_dim, padded });
        }
        if format != KvFormat::Native && format.kernel(page).is_none() {
            return Err(BackendError::Format { format, backend: "CUDA".to_owned() });
        }
        Ok(())
    }

    fn host_bytes(&self, bytes: usize) -> Result<Box<dyn HostBytes>, BackendError> {
        Ok(Box::new(PinnedBytes::zeroed(self.cache.device(), bytes)?))
    }

    fn page_loader(&mut self) -> Result<Option<Box<dyn PageLoader>>, BackendError> {
        Ok(Some(Box::new(Loader::new(self)?)))
    }

    fn elastic(&mut self) -> Option<&mut dyn ElasticMemory> {
        self.cache.elastic_pages().is_some().then_some(self)
    }

    fn page_memory(&mut self) -> Option<&mut dyn staged::PageMemory> {
        Some(self)
    }

    fn max_group_size(&self) -> u32 {
        kernels_gpu::attention::tile::max_rows(self.stored().head_dim)
    }

    fn shares(&self) -> u32 {
        shares_for(self.cache.device().multiprocessors(), self.shape().kv_heads)
    }

    fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        self.cache.plan_config(grouping, group_size)
    }

    fn score_plan_config(&self, group_size: u32) -> Option<PlanConfig> {
        Some(self.plan_config(Grouping::NodeChunk, group_size))
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        self.write(layer, targets, counters, [k, v], None)
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
        self.write(layer, targets, counters, [k, v], Some(rotation))
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(self.shape(), moves)?;
        let stream = &self.stream;
        let on_device = self.moves.fill(stream, moves)?;
        // SAFETY: pages were checked above, and the moves' buffer is used on this stream only.
        unsafe { self.cache.copy(on_device.pointer(), moves.len() as u32, stream.raw()) }?;
        Ok(())
    }

    fn copy_apart(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(self.shape(), moves)?;
        let stream = &self.stream;
        let on_device = self.moves.fill(stream, moves)?;
        let count = moves.len() as u32;
        // SAFETY: as in `copy`; no target is a source, as the caller says.
        unsafe { self.cache.copy_apart(on_device.pointer(), count, stream.raw()) }?;
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

    fn export_part(
        &mut self,
        format: KvFormat,
        tokens: Range<usize>,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        match self.padded {
            None => staged::export(self, format, tokens, paged, foreign),
            Some(_) => self.export_padded(format, tokens, paged, foreign),
        }
    }

    fn read_cells(
        &mut self,
        layer: u32,
        cells: &[u32],
        rows: [&mut [f32]; 2],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, cells.len() * PAGE_TOKENS as usize)?;
        match self.padded {
            None => staged::read_cells(self, layer, cells, rows),
            Some(_) => self.read_padded_cells(layer, cells, rows),
        }
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(self.shape(), &call)?;
        let lse_rows = call.lse.as_ref().and_then(ElementsMut::on_device);
        let rows = [call.q.on_device(), call.out.on_device(), lse_rows];
        self.see(&[("q", rows[0]), ("out", rows[1])])?;
        if call.lse.is_some() {
            self.see(&[("lse", lse_rows)])?;
        }
        self.set_counters(call.counters)?;
        if self.capturing.is_none() {
            self.load(call.plan, call.counters)?;
        }
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
        let heads = call.q.len() / self.shape.head_dim as usize;
        // SAFETY: as below.
        let padded = unsafe { self.padded_attend(buffers, heads) }?;
        let plan = match &self.capturing {
            Some(inputs) => &inputs.plan,
            None => self.plans.last().expect("the plan was just loaded"),
        };
        debug_assert!(plan.holds(call.plan));
        let stream = &self.stream;
        // SAFETY: the buffers have the lengths that were checked above, the plan's pages and counters
        // were checked when it was loaded; buffers of ours are used on one stream only, and the caller's are kept by
        // their promise.
        unsafe {
            self.cache.attend(call.layer, plan, &padded, &call.params, stream.raw())?;
            self.cut_out(padded.out, buffers.out, heads)?;
        }
        self.leave(&rows)?;
        if let Some(bytes) = call.out.into_bytes() {
            self.out.read(bytemuck::cast_slice_mut(bytes), stream)?;
        }
        if let Some(lse) = call.lse.and_then(ElementsMut::into_typed::<f32>) {
            self.lse.read(lse, stream)?;
        }
        Ok(())
    }

    fn compact(&mut self, call: Compact<'_>) -> Result<(), BackendError> {
        check_compact(self.shape(), &call)?;
        Ok(self.compact_checked(&call)?)
    }

    fn score(&mut self, call: Score<'_>) -> Result<(), BackendError> {
        check_score(self.shape(), &call)?;
        self.score_checked(call)
    }

    fn clear_scores(&mut self, pages: &[PageId]) -> Result<(), BackendError> {
        check_pages(self.shape(), "pages", pages)?;
        let kv_heads = self.shape().kv_heads;
        let cells = pages.iter().flat_map(|page| page * kv_heads..(page + 1) * kv_heads);
        Ok(self.cache.clear_scores(&cells.collect::<Vec<_>>(), &self.stream)?)
    }

    fn read_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &mut [u32],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, scores.len())?;
        Ok(self.cache.read_scores(layer, cells, scores, &self.stream)?)
    }

    fn write_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &[u32],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, scores.len())?;
        Ok(self.cache.write_scores(layer, cells, scores, &self.stream)?)
    }
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        Self::Device(Box::new(error))
    }
}
