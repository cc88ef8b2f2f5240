//! Which tokens of a node are worth keeping, and what becomes of the others.
//!
//! A [`Compaction`] says, for each layer and KV head, which rows of keys and values a node has from now on: kept ones,
//! and sums of several. Policies, each a [`Retention`], make them from scores that queries leave
//! ([`TreeCache::score`](crate::TreeCache::score)); [`TreeCache::maintain`](crate::TreeCache::maintain) has them made for
//! all nodes and carries them out.
//!
//! | policy | keeps | from |
//! |---|---|---|
//! | [`Corm`] | what one of the last queries found important, and the newest; as many as that are | arXiv 2404.15949 |
//! | [`H2o`] | the tokens with the largest sums of probabilities, and the newest | arXiv 2306.14048 |
//! | [`SnapKv`] | what the last queries of a prompt looked at, with what is beside it | arXiv 2404.14469 |
//! | [`Sinks`] | the first tokens and the newest | arXiv 2309.17453 |
//! | [`Merger`] | one for each run of similar keys, that counts for all of them | arXiv 2407.08454 |
//! | [`Less`] | what another policy keeps, and of the rest sums of features | arXiv 2402.09398 |
//!
//! **In a tree** a token belongs to all branches below it and may go when it is minor for every one of them. Scores are
//! taken over all queries that see a token; the age of a score counts from the branch that has come least far
//! ([`HeadView::now`]). So a policy looks at one node and cannot take from one branch what another needs.

mod compaction;
mod corm;
mod features;
mod h2o;
mod less;
mod merger;
mod sinks;
mod snapkv;
mod spec;
mod view;

pub use self::compaction::{Compaction, CompactionError, HeadCompaction, Row, Source};
pub use self::corm::Corm;
pub use self::features::{LessError, LessLayer, LessMap, LessShape};
pub use self::h2o::H2o;
pub use self::less::Less;
pub use self::merger::{MergeBias, Merger};
pub use self::sinks::Sinks;
pub use self::snapkv::SnapKv;
pub use self::spec::{Policy, PolicyError};
pub use self::view::HeadView;

use crate::attention::Reduce;
pub use crate::tree::FeatureMap;

/// Which tokens are kept: a policy. It looks at one layer and KV head of one node at a time.
pub trait Retention {
    /// The scores that it goes by; `None` if it needs none.
    fn observe(&self) -> Option<Observe>;

    /// Whether it looks at keys.
    fn needs_keys(&self) -> bool {
        false
    }

    /// What becomes of the rows of a head.
    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction;
}

impl<P: Retention + ?Sized> Retention for Box<P> {
    fn observe(&self) -> Option<Observe> {
        (**self).observe()
    }

    fn needs_keys(&self) -> bool {
        (**self).needs_keys()
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        (**self).select(head)
    }
}

/// Scores that a policy wants queries to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observe {
    /// How probabilities become scores.
    pub reduce: Reduce,
    /// Of a node's queries in a batch the last so many count.
    pub window: u32,
}

/// What a cache may hold before [`TreeCache::maintain`](crate::TreeCache::maintain) does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Bytes of pages that nodes hold, all layers and KV heads.
    Bytes(u64),
    /// Rows of all nodes: the mean over layers and KV heads.
    Tokens(u64),
}

/// What [`TreeCache::maintain`](crate::TreeCache::maintain) has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Nodes that were compacted.
    pub nodes: u32,
    /// Pages that came free.
    pub pages: u32,
    /// Rows of those nodes before, of all layers and KV heads.
    pub rows_before: u64,
    /// Rows of those nodes afterwards.
    pub rows_after: u64,
    /// Nodes left alone for want of free pages: the new ones are there before the old ones are free.
    pub refused: u32,
}

impl std::ops::AddAssign for Maintained {
    fn add_assign(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.pages += other.pages;
        self.rows_before += other.rows_before;
        self.rows_after += other.rows_after;
        self.refused += other.refused;
    }
}
