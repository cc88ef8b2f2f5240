//! A plan with what ties it to its cache.

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget, NONE};

use super::CacheError;
use crate::plan::{Grouping, Plan};
use crate::tree::{ForestError, GrowthCursor, NodeKey, TokenForest};

/// A plan for some leaves of a [`TreeCache`](super::TreeCache), good for every layer, and for every
/// decode step while it is kept up to date by [`TreeCache::step`](super::TreeCache::step) or
/// [`TreeCache::update`](super::TreeCache::update).
#[derive(Clone, Debug)]
pub struct TreePlan {
    pub(super) cache: u64,
    pub(super) grouping: Grouping,
    pub(super) leaves: Vec<NodeKey>,
    pub(super) plan: Plan,
    pub(super) cursor: GrowthCursor,
    /// Where the last token of each leaf is, in the order of `leaves`; [`NONE`] for one that has none
    /// and does not grow.
    pub(super) targets: Vec<AppendTarget>,
}

/// What [`TreeCache::update`](super::TreeCache::update) had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanUpdate {
    /// Nothing: no page was added.
    Unchanged,
    /// New pages were entered into the plan.
    Patched,
    /// The plan was made anew.
    Replanned,
}

impl TreePlan {
    /// The nodes whose queries the plan serves, in the order they were given in: the order of rows in
    /// `q`, `out`, `lse`, and in `k` and `v` of an append.
    pub fn leaves(&self) -> &[NodeKey] {
        &self.leaves
    }

    /// How it was grouped.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// The plan as backends and kernels read it; its rows are in the order of the leaves.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Looks up the targets that go with the leaves.
    pub(super) fn set_targets(&mut self, forest: &TokenForest) -> Result<(), ForestError> {
        self.targets.clear();
        for &leaf in &self.leaves {
            let length = forest.length(leaf)?;
            if !forest.is_draft(leaf)? && !forest.is_sealed(leaf)? {
                self.targets.push(APPEND_LIVE | forest.length_slot(leaf)?);
            } else if length == 0 {
                self.targets.push(NONE);
            } else {
                forest.append_targets(leaf, length - 1..length, &mut self.targets)?;
            }
        }
        Ok(())
    }

    /// Whether every leaf has a token to write.
    pub(super) fn check_targets(&self, forest: &TokenForest) -> Result<(), CacheError> {
        for (index, (&node, &target)) in self.leaves.iter().zip(&self.targets).enumerate() {
            if target == NONE || forest.length(node)? == 0 {
                return Err(CacheError::NoToken { node, index });
            }
        }
        Ok(())
    }
}
