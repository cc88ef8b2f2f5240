//! Plans on the device.

use super::{CudaBackend, PLANS};
use crate::attention::{Backend, BackendError, Counters, check_plan};
use crate::cuda::{CudaError, CudaPlan, PlanCapacity};
use crate::plan::Plan;

impl CudaBackend {
    /// Brings the plan to the device, unless it is there; it then is the last of `plans`.
    pub(super) fn load(&mut self, plan: &Plan, counters: Counters<'_>) -> Result<(), BackendError> {
        check_plan(self.cache.shape(), plan, counters)?;
        if !plan.residues().is_empty() {
            return Err(BackendError::Residues { backend: self.name() });
        }
        let held = |on: &CudaPlan| on.holds(plan) || on.precedes(plan);
        if let Some(at) = self.plans.iter().position(held) {
            self.plans[at..].rotate_left(1);
            let on = self.plans.last_mut().expect("one was found");
            on.update(plan, &self.stream)?;
            return Ok(());
        }
        let fits = |on: &CudaPlan| on.has_room_for(plan);
        let fitting = self.plans.iter().position(fits);
        let full = self.plans.len() >= PLANS;
        let room = match fitting.filter(|_| full).or(full.then_some(0)) {
            // On one stream, so what still reads the old plan comes before the copy.
            Some(at) => Some(self.plans.remove(at)).filter(fits),
            None => None,
        };
        let mut room = match room {
            Some(room) => room,
            None => self.room(plan, None, None)?,
        };
        room.update(plan, &self.stream)?;
        self.plans.push(room);
        Ok(())
    }

    /// Room for `plan` and for others that are larger, of as many `rows` at most, and for those that had room `before`.
    pub(super) fn room(
        &self,
        plan: &Plan,
        before: Option<PlanCapacity>,
        rows: Option<usize>,
    ) -> Result<CudaPlan, CudaError> {
        let mut capacity = PlanCapacity::with_headroom(plan, before);
        // A query has at most one merge row, and each costs the merge's launch a warp a head.
        capacity.merge_rows = rows.unwrap_or(capacity.merge_rows);
        self.cache.reserve(capacity, plan.group_size())
    }
}
