//! A plan on the device, with room for what its items leave.

use std::ops::Range;

use super::plan::PlanImages;
use super::{CudaError, DeviceBuffer, PlanCapacity, Stream};
use crate::plan::Plan;

/// A plan on the device, with the partial results its work items leave.
#[derive(Debug)]
pub struct CudaPlan {
    pub(super) images: PlanImages,
    pub(super) partial_o: DeviceBuffer<f32>,
    pub(super) partial_lse: DeviceBuffer<f32>,
    pub(super) group_size: u32,
    /// Most rows of an item.
    pub(super) max_rows: u32,
}

impl CudaPlan {
    /// Puts `plan` there, copying what differs from what is there; returns the bytes copied. Launches
    /// enqueued on `stream` later see the new plan, earlier ones the old.
    ///
    /// # Errors
    /// [`CudaError::PlanCapacity`], [`CudaError::GroupSize`] or [`CudaError::ItemRows`] (nothing is changed),
    /// [`CudaError::Driver`].
    pub fn update(&mut self, plan: &Plan, stream: &Stream) -> Result<usize, CudaError> {
        if plan.group_size() != self.group_size {
            return Err(CudaError::GroupSize {
                got: plan.group_size(),
                expected: self.group_size,
            });
        }
        self.capacity().holds(&PlanCapacity::of(plan))?;
        let rows = most_item_rows(plan);
        if rows > self.max_rows {
            return Err(CudaError::ItemRows {
                got: rows,
                max: self.max_rows,
            });
        }
        self.images.update(plan, stream)
    }

    /// Copies only the words `dirty` of `plan`: the plan that was put there last, after
    /// [`Plan::patch`](crate::plan::Plan::patch). Returns the bytes copied.
    ///
    /// # Errors
    /// [`CudaError::PlanCapacity`] (nothing is changed), [`CudaError::Driver`].
    pub fn patch(
        &mut self,
        plan: &Plan,
        dirty: &[Range<u32>],
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        self.images.patch(plan, dirty, stream)
    }

    /// The room set aside.
    pub fn capacity(&self) -> &PlanCapacity {
        self.images.capacity()
    }
    /// Query heads a KV head that it was set aside for.
    pub fn group_size(&self) -> u32 {
        self.group_size
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
