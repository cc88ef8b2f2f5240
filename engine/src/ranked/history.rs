//! A rank's history as a number: ranks whose numbers differ have made different trees.

use deft::tree::TokenForest;

use crate::ranks::RankError;

/// After so many operations all lengths and pages count, not only how many there are.
const IN_FULL: u64 = 16;

/// What a rank has done so far.
#[derive(Clone, Debug)]
pub(super) struct History {
    hash: u64,
    operations: u64,
}

impl History {
    pub(super) fn new() -> Self {
        // FNV-1a's.
        Self { hash: 0xcbf2_9ce4_8422_2325, operations: 0 }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// An operation has been run, and left this forest.
    pub(super) fn ran(&mut self, words: &[u64], succeeded: bool, forest: &TokenForest) {
        self.operations += 1;
        for &word in words {
            self.mix(word);
        }
        self.mix(succeeded.into());
        self.mix(forest.node_count() as u64);
        self.mix(forest.pool().free().into());
        if self.operations.is_multiple_of(IN_FULL) {
            for &word in forest.lengths().iter().chain(forest.tail_pages()) {
                self.mix(word.into());
            }
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29);
    }

    /// Whether all ranks have this one's history, by their hashes.
    pub(super) fn check(&self, hashes: impl IntoIterator<Item = u64>) -> Result<(), RankError> {
        let hashes: Vec<u64> = hashes.into_iter().collect();
        let own = hashes[0];
        match (0..).zip(hashes).find(|&(_, hash)| hash != own) {
            None => Ok(()),
            Some((rank, theirs)) => {
                let operations = self.operations;
                Err(RankError::Diverged { rank, operations, theirs, own })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deft::cache::PagePool;

    use super::*;

    fn forest(lengths: &[u32]) -> TokenForest {
        let mut forest = TokenForest::new(PagePool::new(16).unwrap());
        for &length in lengths {
            forest.insert_root(length).unwrap();
        }
        forest
    }

    #[test]
    fn histories_differ_by_operations_their_order_outcomes_and_forests() {
        let of = |operations: &[(&[u64], bool)], forest: &TokenForest| {
            let mut history = History::new();
            operations.iter().for_each(|(words, good)| history.ran(words, *good, forest));
            history.hash()
        };
        let (one, two) = (forest(&[70]), forest(&[70, 1]));
        let hashes = [
            of(&[], &one),
            of(&[(&[1, 2], true)], &one),
            of(&[(&[2, 1], true)], &one),
            of(&[(&[1, 2], false)], &one),
            of(&[(&[1, 2], true)], &two),
            of(&[(&[1, 2], true), (&[1, 2], true)], &one),
        ];
        let distinct: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        // As many nodes and pages, but other lengths: seen after some operations at most.
        let other = forest(&[71]);
        let sixteen = &[(&[1_u64][..], true); IN_FULL as usize][..];
        assert_ne!(of(sixteen, &one), of(sixteen, &other));
        assert_eq!(of(sixteen, &one), of(sixteen, &forest(&[70])));
    }

    #[test]
    fn a_rank_whose_history_is_another_is_named() {
        let history = History::new();
        assert_eq!(history.check([7, 7, 7]), Ok(()));
        let error = history.check([7, 7, 8]).unwrap_err();
        assert!(matches!(error, RankError::Diverged { rank: 2, theirs: 8, own: 7, .. }));
    }
}
