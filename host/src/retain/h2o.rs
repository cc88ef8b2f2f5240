//! H2O (arXiv 2306.14048).

use super::{HeadCompaction, HeadView, Observe, Retention};
use crate::attention::Reduce;

/// Keeps the `recent` newest tokens and, as far as the budget goes, those that queries gave most weight in sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2o {
    /// Newest tokens that stay.
    pub recent: u32,
    /// Of a prompt's queries the last so many count; the paper has all count, `u32::MAX`.
    pub window: u32,
}

impl Retention for H2o {
    fn observe(&self) -> Option<Observe> {
        Some(Observe { reduce: Reduce::Sum, window: self.window })
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        head.keep_largest(self.recent, |row| head.score(row))
    }
}
