//! CORM (arXiv 2404.15949).

use super::{HeadCompaction, HeadView, Observe, Retention};
use crate::attention::Reduce;

/// Keeps a token that was important for one of the last `window` queries, `p >= 1 / t` with `t` tokens that the query sees,
/// and the `recent` newest. How many those are differs by layer and head; no budget decides. `u32::MAX` keeps all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corm {
    /// Queries that are asked.
    pub window: u32,
    /// Newest tokens that stay.
    pub recent: u32,
}

impl Retention for Corm {
    fn observe(&self) -> Option<Observe> {
        Some(Observe { reduce: Reduce::Last, window: self.window })
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        head.keep(|row| {
            head.is_recent(row, self.recent)
                || head.last(row).saturating_add(self.window) > head.now
        })
    }
}
