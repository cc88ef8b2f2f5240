//! SnapKV (arXiv 2404.14469).

use super::{HeadCompaction, HeadView, Observe, Retention};
use crate::attention::Reduce;

/// Keeps what the last `window` queries of a prompt looked at and what lies beside it: the tokens with the largest weights in sum,
/// each as large as the largest of its neighbours, as far as the budget goes; and the window itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapKv {
    /// Queries at a prompt's end that are asked, and tokens there that stay; the paper has 32.
    pub window: u32,
    /// Rows of a neighbourhood, the token in the middle: odd. The paper has 7.
    pub pool: u32,
}

impl Retention for SnapKv {
    fn observe(&self) -> Option<Observe> {
        Some(Observe { reduce: Reduce::Sum, window: self.window })
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        let reach = self.pool as usize / 2;
        let pooled = |row: usize| {
            let beside = row.saturating_sub(reach)..(row + reach + 1).min(head.rows());
            beside.map(|row| head.score(row)).fold(0.0, f32::max)
        };
        let pooled: Vec<f32> = (0..head.rows()).map(pooled).collect();
        head.keep_largest(self.window, |row| pooled[row])
    }
}
