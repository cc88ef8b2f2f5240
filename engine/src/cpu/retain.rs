//! Keeping what matters of prompts and branches.

use deft::NodeKey;
use deft::retain::{Budget, Compaction, Maintained, Observe, Policy, Retention};

use super::CpuModel;
use crate::tree_model::ModelError;

/// Which tokens a [`CpuModel`] keeps. Its passes score what their queries attend to, where the policy asks for that.
#[derive(Clone, Debug, PartialEq)]
pub struct Retain {
    /// Who chooses. Weights of LESS are read when the model is loaded ([`read_less`](crate::read_less)).
    pub policy: Policy,
    /// What the cache may hold before anything goes.
    pub budget: Budget,
    /// After so many passes the next step or draft begins with [`CpuModel::maintain`]; 0: nothing is dropped unasked.
    pub every: u32,
}

/// A model's policy, and how things stand.
#[derive(Debug)]
pub(super) struct Retaining {
    retain: Retain,
    /// Passes since the last upkeep.
    passes: u32,
    /// What upkeep has done so far.
    pub(super) done: Maintained,
    /// Tokens of a prompt that come after those of this pass.
    after: u32,
}

impl Retaining {
    pub(super) fn new(retain: Retain) -> Self {
        Self { retain, passes: 0, done: Maintained::default(), after: 0 }
    }

    /// The scores that this pass is to leave; `None` for none.
    pub(super) fn observe(&self) -> Option<Observe> {
        let Observe { reduce, window } = self.retain.policy.observe()?;
        // A prompt's last queries are the last of all its parts.
        let window = if window == u32::MAX { window } else { window.saturating_sub(self.after) };
        (window > 0).then_some(Observe { reduce, window })
    }
}

impl CpuModel {
    /// What upkeep has done so far; `None` for a model that keeps all.
    pub fn maintained(&self) -> Option<Maintained> {
        self.retain.as_ref().map(|retaining| retaining.done)
    }

    /// Drops what the model's policy finds minor, if the cache holds more than its budget
    /// ([`TreeCache::maintain`](deft::TreeCache::maintain)); nothing of a model that keeps all.
    ///
    /// # Errors
    /// The cache's.
    pub fn maintain(&mut self) -> Result<Maintained, ModelError> {
        let Some(retaining) = &mut self.retain else {
            return Ok(Maintained::default());
        };
        retaining.passes = 0;
        let Retain { policy, budget, .. } = &mut retaining.retain;
        let done = self.cache.maintain(policy, *budget)?;
        retaining.done += done;
        if done.nodes > 0 {
            self.step = None;
        }
        Ok(done)
    }

    /// Compacts a node as the model's policy chooses where it may keep the part `keep` of its rows, however little
    /// that frees; what it chose, or `None` if nothing.
    ///
    /// # Errors
    /// The cache's.
    pub fn compact(&mut self, node: NodeKey, keep: f64) -> Result<Option<Compaction>, ModelError> {
        let Some(retaining) = &mut self.retain else {
            return Ok(None);
        };
        let chosen = self.cache.select(&mut retaining.retain.policy, node, keep)?;
        if let Some(chosen) = &chosen {
            self.cache.compact_node(node, chosen)?;
            self.step = None;
        }
        Ok(chosen)
    }

    /// Upkeep, if it is due.
    pub(super) fn maintain_if_due(&mut self) -> Result<(), ModelError> {
        let due = |retaining: &Retaining| {
            retaining.retain.every > 0 && retaining.passes >= retaining.retain.every
        };
        if self.retain.as_ref().is_some_and(due) {
            self.maintain()?;
        }
        Ok(())
    }

    /// Says that `after` tokens of a prompt come after those of the next pass.
    pub(super) fn before_pass(&mut self, after: usize) {
        if let Some(retaining) = &mut self.retain {
            retaining.after = after as u32;
            retaining.passes += 1;
        }
    }
}
