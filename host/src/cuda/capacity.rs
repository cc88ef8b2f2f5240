//! How to plan for a device, and how much room plans take there.

use kernels_gpu::attention::tile::max_rows;

use super::{CudaDevice, CudaError};
use crate::cache::CacheShape;
use crate::format::KvFormat;
use crate::plan::{CostModel, Grouping, Plan, PlanConfig, shares_for};

/// A plan that outgrows its room takes this many times what it needs.
const HEADROOM: u32 = 2;

/// Room for plans.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Formats that launches read, each with programs of its own ([`Plan::launches`]). The native one is among them only for
    /// plans that have no other: their pages go with the others' elsewhere.
    pub formats: Vec<KvFormat>,
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
            formats: plan.launches().iter().map(|pages| pages.format).collect(),
        }
    }

    /// Room for `plan`, for others that are larger, and for those that had room `before`.
    pub(super) fn with_headroom(plan: &Plan, before: Option<Self>) -> Self {
        before.into_iter().fold(Self::of(plan).scaled(HEADROOM), Self::and_before)
    }

    /// Room for either; for a launch of native pages alone only if `self` has one, since a graph would make it of nothing.
    fn and_before(self, mut before: Self) -> Self {
        if self.place_of(KvFormat::Native).is_none() {
            before.formats.retain(|&format| format != KvFormat::Native);
        }
        self.max(before)
    }

    /// Which of the launches reads pages of `format`.
    pub(super) fn place_of(&self, format: KvFormat) -> Option<usize> {
        self.formats.iter().position(|of| *of == format)
    }

    /// Room for either.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let mut formats = self.formats;
        formats.extend(other.formats);
        formats.sort_unstable_by_key(|format| format.code());
        formats.dedup();
        Self {
            shares: self.shares.max(other.shares),
            stride_words: self.stride_words.max(other.stride_words),
            masks: self.masks.max(other.masks),
            merge_rows: self.merge_rows.max(other.merge_rows),
            merge_slots: self.merge_slots.max(other.merge_slots),
            partial_slots: self.partial_slots.max(other.partial_slots),
            formats,
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
            formats: self.formats,
        }
    }

    /// Words of all programs.
    pub(super) fn words(&self) -> usize {
        self.formats.len() * self.words_of_one()
    }

    /// Words of the programs of one launch.
    pub(super) fn words_of_one(&self) -> usize {
        self.shares as usize * self.stride_words as usize
    }

    /// Whether a plan that needs `needed` fits.
    ///
    /// # Errors
    /// [`CudaError::PlanCapacity`] naming the first part that does not.
    pub fn holds(&self, needed: &Self) -> Result<(), CudaError> {
        let other = needed.formats.iter().filter(|format| !self.formats.contains(format));
        let parts = [
            ("shares", needed.shares as usize, self.shares as usize),
            ("words a share", needed.stride_words as usize, self.stride_words as usize),
            ("mask words", needed.masks, self.masks),
            ("merge rows", needed.merge_rows, self.merge_rows),
            ("merge slots", needed.merge_slots, self.merge_slots),
            ("partial slots", needed.partial_slots as usize, self.partial_slots as usize),
            ("more KV formats", other.count(), 0),
        ];
        match parts.into_iter().find(|(_, needed, room)| needed > room) {
            None => Ok(()),
            Some((what, needed, capacity)) => {
                Err(CudaError::PlanCapacity { what, needed, capacity })
            }
        }
    }
}

/// How to plan for a cache of `shape` on `device`.
pub(super) fn plan_config(
    device: &CudaDevice,
    shape: &CacheShape,
    grouping: Grouping,
    group_size: u32,
) -> PlanConfig {
    let shares = shares_for(device.multiprocessors(), shape.kv_heads);
    let mut config = PlanConfig::new(grouping, group_size, shape.head_dim, shares);
    config.max_rows = max_rows(shape.head_dim);
    config.element_bytes = shape.dtype.bytes() as u32;
    config.cost = CostModel::of_gpu(device.name());
    config
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
            formats: vec!["fp8".parse().unwrap()],
        };
        let mut small = needed.clone();
        small.merge_rows -= 1;
        assert_eq!(
            small.holds(&needed),
            Err(CudaError::PlanCapacity { what: "merge rows", needed: 6, capacity: 5 })
        );
        assert_eq!(needed.clone().scaled(2).holds(&needed), Ok(()));
        small.formats = vec!["kivi2".parse().unwrap()];
        small.merge_rows += 1;
        assert_eq!(
            small.holds(&needed),
            Err(CudaError::PlanCapacity { what: "more KV formats", needed: 1, capacity: 0 })
        );
        let both = small.clone().max(needed.clone());
        assert_eq!((both.holds(&needed), both.holds(&small)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_launch_of_native_pages_alone_is_kept_for_plans_that_have_one() {
        let fp8: KvFormat = "fp8".parse().unwrap();
        let of = |formats: &[KvFormat]| {
            let capacity = PlanCapacity::of(&Plan::empty());
            PlanCapacity { formats: formats.to_vec(), ..capacity }
        };
        assert_eq!(PlanCapacity::of(&Plan::empty()).formats, [KvFormat::Native]);
        let both = of(&[KvFormat::Native, fp8]);
        assert_eq!(of(&[KvFormat::Native]).and_before(both.clone()).formats, both.formats);
        assert_eq!(of(&[fp8]).and_before(both).formats, [fp8]);
    }
}
