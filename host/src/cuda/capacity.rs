//! How much room plans take on the device.

use super::CudaError;
use crate::plan::Plan;

/// Room for plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanCapacity {
    /// Shares a KV head: blocks of a launch.
    pub shares: u32,
    /// Words from one share's program to the next; a multiple of 4.
    pub stride_words: u32,
    /// Words of masks.
    pub masks: usize,
    /// Merge rows.
    pub merge_rows: usize,
    /// Entries of merge rows.
    pub merge_slots: usize,
    /// Partial slots a KV head.
    pub partial_slots: u32,
}

impl PlanCapacity {
    /// Exactly what `plan` needs.
    pub fn of(plan: &Plan) -> Self {
        Self {
            shares: plan.shares(),
            stride_words: plan.stride(),
            masks: plan.masks().len(),
            merge_rows: plan.merge_rows().len(),
            merge_slots: plan.merge_slots().len(),
            partial_slots: plan.partial_slots(),
        }
    }

    /// Room for either.
    pub fn max(self, other: Self) -> Self {
        Self {
            shares: self.shares.max(other.shares),
            stride_words: self.stride_words.max(other.stride_words),
            masks: self.masks.max(other.masks),
            merge_rows: self.merge_rows.max(other.merge_rows),
            merge_slots: self.merge_slots.max(other.merge_slots),
            partial_slots: self.partial_slots.max(other.partial_slots),
        }
    }

    /// Room for plans `factor` times as large, with as many shares, and for at least a few merge rows
    /// and masks where this has none.
    #[must_use]
    pub fn scaled(self, factor: u32) -> Self {
        let count = |n: usize| (n * factor as usize).max(64);
        Self {
            shares: self.shares,
            stride_words: (self.stride_words * factor).next_multiple_of(4),
            masks: count(self.masks),
            merge_rows: count(self.merge_rows),
            merge_slots: count(self.merge_slots),
            partial_slots: (self.partial_slots * factor).max(64),
        }
    }

    /// Whether a plan that needs `needed` fits.
    ///
    /// # Errors
    /// [`CudaError::PlanCapacity`] naming the first part that does not.
    pub fn holds(&self, needed: &Self) -> Result<(), CudaError> {
        let parts = [
            ("shares", needed.shares as usize, self.shares as usize),
            ("words a share", needed.stride_words as usize, self.stride_words as usize),
            ("mask words", needed.masks, self.masks),
            ("merge rows", needed.merge_rows, self.merge_rows),
            ("merge slots", needed.merge_slots, self.merge_slots),
            ("partial slots", needed.partial_slots as usize, self.partial_slots as usize),
        ];
        match parts.into_iter().find(|(_, needed, room)| needed > room) {
            None => Ok(()),
            Some((what, needed, capacity)) => {
                Err(CudaError::PlanCapacity { what, needed, capacity })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_does_not_fit_is_refused_by_what_it_lacks() {
        let needed = PlanCapacity {
            shares: 5,
            stride_words: 64,
            masks: 10,
            merge_rows: 6,
            merge_slots: 12,
            partial_slots: 12,
        };
        let mut small = needed;
        small.merge_rows -= 1;
        assert_eq!(
            small.holds(&needed),
            Err(CudaError::PlanCapacity { what: "merge rows", needed: 6, capacity: 5 })
        );
        assert_eq!(needed.scaled(2).holds(&needed), Ok(()));
        assert_eq!(small.max(needed), needed);
    }
}
