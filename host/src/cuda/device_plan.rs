//! A plan on the device, with room for what its items leave.

use kernels_gpu::attention::tile::max_rows;

use super::kernels::Reader;
use super::plan::PlanImages;
use super::{CudaDevice, CudaError, DeviceBuffer, PlanCapacity, Stream};
use crate::cache::CacheShape;
use crate::format::KvFormat;
use crate::plan::Plan;

/// A plan on the device, with the partial results its work items leave.
#[derive(Debug)]
pub struct CudaPlan {
    pub(super) images: PlanImages,
    /// The kernels of the formats that there is room for; none of its own for native pages.
    pub(super) readers: Vec<Option<Reader>>,
    pub(super) partial_o: DeviceBuffer<f32>,
    pub(super) partial_lse: DeviceBuffer<f32>,
    pub(super) group_size: u32,
    /// Most rows of an item.
    max_rows: u32,
    /// What the partial results have room for.
    heads: Heads,
    content: Content,
}

/// What of a cache's shape and place the size of partial results depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    device: u32,
    kv_heads: u32,
    head_dim: u32,
}

impl Heads {
    fn of(device: &CudaDevice, shape: &CacheShape) -> Self {
        Self { device: device.ordinal(), kv_heads: shape.kv_heads, head_dim: shape.head_dim }
    }
}

/// Which plan the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    /// The plan of this number.
    Plan(u64),
    /// Parts of two: a copy failed.
    Mixed,
}

impl CudaPlan {
    /// As [`CudaCache::reserve`](super::CudaCache::reserve).
    pub(super) fn new(
        device: &CudaDevice,
        shape: &CacheShape,
        capacity: PlanCapacity,
        group_size: u32,
    ) -> Result<Self, CudaError> {
        let rows = capacity.partial_slots as usize * group_size as usize * shape.kv_heads as usize;
        let o = rows * shape.head_dim as usize;
        let readers = capacity.formats.iter().map(|&format| match format {
            KvFormat::Native => Ok(None),
            format => Reader::new(device, shape, format).map(Some),
        });
        Ok(Self {
            readers: readers.collect::<Result<_, _>>()?,
            images: PlanImages::new(device, capacity)?,
            partial_o: DeviceBuffer::uninitialized(device, "partial outputs", o)?,
            partial_lse: DeviceBuffer::uninitialized(device, "partial LSEs", rows)?,
            group_size,
            max_rows: max_rows(shape.head_dim),
            heads: Heads::of(device, shape),
            content: Content::Nothing,
        })
    }

    /// Puts `plan` there, copying what differs from what is there; returns the bytes copied. Of the plan that is there
    /// after one [`Plan::patch`](crate::plan::Plan::patch) only the words that it changed are looked at. Launches
    /// enqueued on `stream` later see the new plan, earlier ones the old.
    ///
    /// # Errors
    /// [`CudaError::PlanCapacity`], [`CudaError::GroupSize`] or [`CudaError::ItemRows`] (nothing is changed);
    /// [`CudaError::Driver`]: then nothing can be computed until an update succeeds.
    pub fn update(&mut self, plan: &Plan, stream: &Stream) -> Result<usize, CudaError> {
        if plan.group_size() != self.group_size {
            return Err(CudaError::GroupSize { got: plan.group_size(), expected: self.group_size });
        }
        if self.content == Content::Plan(plan.number()) {
            return Ok(0);
        }
        self.capacity().holds(&PlanCapacity::of(plan))?;
        if let Some((_, dirty)) = plan.last_patch().filter(|_| self.precedes(plan)) {
            self.content = Content::Mixed;
            let bytes = self.images.patch(plan, dirty, stream)?;
            self.content = Content::Plan(plan.number());
            return Ok(bytes);
        }
        let rows = most_item_rows(plan);
        if rows > self.max_rows {
            return Err(CudaError::ItemRows { got: rows, max: self.max_rows });
        }
        self.content = Content::Mixed;
        let bytes = self.images.update(plan, stream)?;
        self.content = Content::Plan(plan.number());
        Ok(bytes)
    }

    /// Bytes of device memory that it takes, partial results included.
    pub fn bytes(&self) -> usize {
        let capacity = self.capacity();
        let words =
            capacity.words() + 2 * capacity.masks + 4 * capacity.merge_rows + capacity.merge_slots;
        4 * (words + self.partial_o.len() + self.partial_lse.len())
    }
    /// The room set aside.
    pub fn capacity(&self) -> &PlanCapacity {
        self.images.capacity()
    }
    /// Query heads a KV head that it was set aside for.
    pub(crate) fn group_size(&self) -> u32 {
        self.group_size
    }

    /// Whether it is `plan` that the device has.
    pub(super) fn holds(&self, plan: &Plan) -> bool {
        self.content == Content::Plan(plan.number())
    }

    /// Whether it is `plan` before its last patch that the device has.
    pub(super) fn precedes(&self, plan: &Plan) -> bool {
        let before = plan.last_patch().map(|(before, _)| Content::Plan(before));
        before == Some(self.content)
    }

    /// Whether a cache of `shape` on `device` can use it.
    ///
    /// # Errors
    /// [`CudaError::PlanShape`], [`CudaError::PlanMixed`].
    pub(super) fn check_for(
        &self,
        device: &CudaDevice,
        shape: &CacheShape,
    ) -> Result<(), CudaError> {
        let cache = Heads::of(device, shape);
        if cache != self.heads {
            let words = |heads: Heads| {
                let Heads { device, kv_heads, head_dim } = heads;
                format!("{kv_heads} KV heads of {head_dim} on device {device}")
            };
            return Err(CudaError::PlanShape { reserved: words(self.heads), cache: words(cache) });
        }
        if self.content == Content::Mixed {
            return Err(CudaError::PlanMixed);
        }
        Ok(())
    }
}

/// Rows of the plan's largest work item.
fn most_item_rows(plan: &Plan) -> u32 {
    let queries = (0..plan.shares()).flat_map(|share| {
        let items = plan.share(share).items();
        items.map(|item| item.record.query_count)
    });
    queries.max().unwrap_or(0) * plan.group_size()
}
