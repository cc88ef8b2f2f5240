//! What ends a search from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much a search may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens to run through the model after the prompt, drafted ones included. The last token of an answer
    /// is not run.
    pub tokens: u64,
    /// Nodes to hold in the model at a time, the prompt's included.
    pub nodes: usize,
}

impl Default for Limits {
    /// No limits.
    fn default() -> Self {
        Self { tokens: u64::MAX, nodes: usize::MAX }
    }
}

/// Cancels a search from another thread, or from its observer; clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the search before its next step; what it found so far is its outcome.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
