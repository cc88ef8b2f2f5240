//! What goes wrong between ranks.

use std::time::Duration;

/// Why ranks do not run together, or no longer.
///
/// All ranks get it. That a rank has died, hangs or has ended the run every later call says again.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// A rank's thread or process ended.
    #[error("rank {rank} is gone: {reason}")]
    Gone {
        /// The rank.
        rank: u32,
        /// How that shows.
        reason: String,
    },
    /// A rank did not come in time.
    #[error("rank {rank} did not come to {what} within {after:?}")]
    Stalled {
        /// The rank; the lowest, if there are several.
        rank: u32,
        /// What the others wait in.
        what: String,
        /// How long they waited.
        after: Duration,
    },
    /// A rank ended the run.
    #[error("rank {rank} ended the run: {reason}")]
    Aborted {
        /// The rank.
        rank: u32,
        /// In its words.
        reason: String,
    },
    /// Two ranks are at different collectives.
    #[error("rank {rank} is at {theirs}, rank {of} at {own}")]
    Differs {
        /// One rank.
        rank: u32,
        /// Where it is.
        theirs: String,
        /// The other.
        of: u32,
        /// Where that is.
        own: String,
    },
    /// Two ranks have made different trees of the same operations.
    #[error(
        "rank {rank} has another history than rank 0 after {operations} operations: {theirs:016x} is not {own:016x}"
    )]
    Diverged {
        /// The rank.
        rank: u32,
        /// Operations until then.
        operations: u64,
        /// The hash of its history.
        theirs: u64,
        /// That of rank 0.
        own: u64,
    },
    /// There cannot be so many ranks, or no such rank.
    #[error("{argument} is {value}; it must be {expected}")]
    Argument {
        /// The argument, or the variable of the environment.
        argument: String,
        /// What it was.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Ranks do not reach each other.
    #[error("rank {rank} cannot meet the others at {address}: {reason}")]
    Meeting {
        /// The rank that says so.
        rank: u32,
        /// Where they were to meet.
        address: String,
        /// Why not.
        reason: String,
    },
}

impl RankError {
    pub(crate) fn argument(
        argument: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        let (argument, value, expected) = (argument.into(), value.to_string(), expected.into());
        Self::Argument { argument, value, expected }
    }

    /// Of two ranks at different collectives.
    pub(super) fn differs(rank: u32, theirs: impl Into<String>, own: impl Into<String>) -> Self {
        Self::Differs { rank, theirs: theirs.into(), of: 0, own: own.into() }
    }
}
