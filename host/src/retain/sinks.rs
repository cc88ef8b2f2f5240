//! StreamingLLM (arXiv 2309.17453).

use super::{HeadCompaction, HeadView, Observe, Retention};

/// Keeps the first tokens of a path and the newest, whatever queries make of them. Positions stay what they were; the paper
/// renumbers those that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sinks {
    /// First tokens that stay; the paper has 4.
    pub sinks: u32,
    /// Newest tokens that stay.
    pub recent: u32,
}

impl Retention for Sinks {
    fn observe(&self) -> Option<Observe> {
        None
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        head.keep(|row| head.positions[row] < self.sinks || head.is_recent(row, self.recent))
    }
}
