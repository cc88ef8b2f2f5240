//! Which tokens of a node are worth keeping, and what becomes of the others.
//!
//! A [`Compaction`] says, for each layer and KV head, which rows of keys and values a node has from now on: kept ones,
//! and sums of several. Policies make them; a tree cache carries them out.

mod compaction;

pub use self::compaction::{Compaction, CompactionError, HeadCompaction, Row, Source};
