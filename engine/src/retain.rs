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

/// A model's policy, if it has one, and how things stand.
#[derive(Debug)]
pub(crate) struct Retaining {
    pub(crate) retain: Option<Retain>,
    /// Passes since the last upkeep.
    passes: u32,
    /// What upkeep has done so far.
    done: Maintained,
    /// Tokens of a prompt that come after those of this pass.
    after: u32,
}

impl Retaining {
    pub(crate) fn new(retain: Option<Retain>) -> Self {
        Self { retain, passes: 0, done: Maintained::default(), after: 0 }
    }

    /// What upkeep has done so far; `None` without a policy.
    pub(crate) fn done(&self) -> Option<Maintained> {
        self.retain.as_ref().map(|_| self.done)
    }

    /// The scores that this pass is to leave; `None` for none.
    pub(crate) fn observe(&self) -> Option<Observe> {
        let Observe { reduce, window } = self.retain.as_ref()?.policy.observe()?;
        // A prompt's last queries are the last of all its parts.
        let window = if window == u32::MAX { window } else { window.saturating_sub(self.after) };
        (window > 0).then_some(Observe { reduce, window })
    }

    /// Begins a pass, after whose tokens of a prompt come `after` more.
    pub(crate) fn begin_pass(&mut self, after: usize) {
        self.after = after as u32;
        self.passes = self.passes.saturating_add(1);
    }

    /// Begins the pass of a step or a draft, with upkeep if it is due; whether that changed nodes.
    pub(crate) fn begin_step(&mut self, cache: &mut TreeCache) -> Result<bool, CacheError> {
        let every = self.retain.as_ref().map_or(0, |retain| retain.every);
        let due = every > 0 && self.passes >= every;
        let changed = due && self.maintain(cache)?.nodes > 0;
        self.begin_pass(0);
        Ok(changed)
    }

    /// Upkeep.
    pub(crate) fn maintain(&mut self, cache: &mut TreeCache) -> Result<Maintained, CacheError> {
        self.passes = 0;
        let Some(Retain { policy, budget, .. }) = &mut self.retain else {
            return Ok(Maintained::default());
        };
        let done = cache.maintain(policy, *budget)?;
        self.done += done;
        Ok(done)
    }
}
