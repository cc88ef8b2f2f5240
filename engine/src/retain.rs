//! Keeping what matters of prompts and branches.

use deft::retain::{Budget, Maintained, Observe, Policy, Retention};
use deft::{CacheError, TreeCache};

/// Which tokens a model keeps. Its passes score what their queries attend to, where the policy asks for that.
#[derive(Clone, Debug, PartialEq)]
pub struct Retain {
    /// Who chooses. Weights of LESS are read when the model is loaded ([`read_less`](crate::read_less)).
    pub policy: Policy,
    /// What the cache may hold before anything goes.
    pub budget: Budget,
    /// After so many passes the next step or draft begins with upkeep ([`CpuModel::maintain`](crate::CpuModel::maintain)); 0:
    /// nothing is dropped unasked.
    pub every: u32,
}

/// A model's policy, and how things stand.
#[derive(Debug)]
pub(crate) struct Retaining {
    pub(crate) retain: Retain,
    /// Passes since the last upkeep.
    passes: u32,
    /// What upkeep has done so far.
    pub(crate) done: Maintained,
    /// Tokens of a prompt that come after those of this pass.
    after: u32,
}

impl Retaining {
    pub(crate) fn new(retain: Retain) -> Self {
        Self { retain, passes: 0, done: Maintained::default(), after: 0 }
    }

    /// The scores that this pass is to leave; `None` for none.
    pub(crate) fn observe(&self) -> Option<Observe> {
        let Observe { reduce, window } = self.retain.policy.observe()?;
        // A prompt's last queries are the last of all its parts.
        let window = if window == u32::MAX { window } else { window.saturating_sub(self.after) };
        (window > 0).then_some(Observe { reduce, window })
    }

    /// Begins a pass, after whose tokens of a prompt come `after` more.
    pub(crate) fn begin_pass(&mut self, after: usize) {
        self.after = after as u32;
        self.passes += 1;
    }

    /// Whether upkeep is due.
    pub(crate) fn is_due(&self) -> bool {
        self.retain.every > 0 && self.passes >= self.retain.every
    }

    /// Upkeep.
    pub(crate) fn maintain(&mut self, cache: &mut TreeCache) -> Result<Maintained, CacheError> {
        self.passes = 0;
        let Retain { policy, budget, .. } = &mut self.retain;
        let done = cache.maintain(policy, *budget)?;
        self.done += done;
        Ok(done)
    }
}
