//! LESS (arXiv 2402.09398).

use super::{HeadCompaction, HeadView, Observe, Retention};

/// Keeps what another policy keeps, and folds what that drops into the node's residue: sums of features of keys and
/// values ([`FeatureMap`](super::FeatureMap)), which attention reads as if they were one more token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Less<P> {
    /// The policy.
    pub kept: P,
}

impl<P: Retention> Retention for Less<P> {
    fn observe(&self) -> Option<Observe> {
        self.kept.observe()
    }

    fn needs_keys(&self) -> bool {
        self.kept.needs_keys()
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        let mut chosen = self.kept.select(head);
        let mut dropped = vec![true; head.rows()];
        for source in &chosen.sources {
            dropped[source.row as usize] = false;
        }
        chosen.folded = (0..).zip(dropped).filter_map(|(row, gone)| gone.then_some(row)).collect();
        chosen
    }
}
