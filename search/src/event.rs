//! What a search tells while it runs.

use super::{Answer, BranchId};

/// Something that happened to the tree.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The prompt was run.
    Started {
        /// The branch that ends with the prompt.
        root: BranchId,
        /// The prompt.
        prompt: &'a [u32],
    },
    /// A branch goes on in several ways; it is no leaf any more.
    Forked {
        /// The branch.
        parent: BranchId,
        /// What takes its place.
        children: &'a [BranchId],
    },
    /// A branch grew.
    Token {
        /// The branch.
        branch: BranchId,
        /// The new token.
        token: u32,
        /// Its log-probability given the tokens before it.
        log_prob: f64,
    },
    /// A branch was judged.
    Scored {
        /// The branch.
        branch: BranchId,
        /// Higher is better.
        score: f64,
    },
    /// A branch's tokens are dropped, as far as no other branch shares them.
    Pruned {
        /// The branch.
        branch: BranchId,
        /// Why.
        reason: PruneReason,
    },
    /// An answer is complete. Several may end in one branch.
    Finished {
        /// The branch where it ends.
        branch: BranchId,
        /// The answer.
        answer: &'a Answer,
    },
    /// A chain of small nodes became one, to give pages back.
    Compacted {
        /// The branch at the end of the path that the chain is on.
        branch: BranchId,
        /// Nodes that were merged.
        nodes: usize,
        /// Tokens of the node that they became.
        tokens: usize,
    },
    /// A pass through the model ended.
    Stepped {
        /// Leaves that grew, or drafted tokens.
        leaves: usize,
        /// Tokens run since the search began, the prompt not counted.
        tokens: u64,
    },
}

/// Why a branch was pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PruneReason {
    /// Its answers are complete.
    Done,
    /// Others are better.
    Lost,
    /// The pool had no page left and this was the lowest-scored leaf.
    OutOfPages,
}

/// Watches a search. Closures are observers.
pub trait Observer {
    /// Called as things happen, on the thread of the search.
    fn event(&mut self, event: &Event<'_>);
}

impl<F: FnMut(&Event<'_>)> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}
