//! Token forests: which tokens a query sees.
//!
//! A [`TokenForest`] holds many trees. Every node owns a run of tokens, a query at a node sees its own
//! tokens and those of all its ancestors. What holds of nodes:
//!
//! | node | grows | forks | carries a draft | tokens lie in |
//! |---|---|---|---|---|
//! | leaf that was never forked | yes | yes | yes | its own pages, the last one partial |
//! | leaf that carries a draft | by `accept` only | no | one | its own pages |
//! | forked, for good, even when its children are gone | no | yes | no | its own pages |
//! | draft | no | no | no | pages that its block's nodes share |
//!
//! Forking copies nothing: children start empty, on a page of their own, and the rest of the parent's
//! last page stays unused. A forest is metadata. Where it says that tokens move, the caller moves them.

mod change;
mod draft;
mod error;
mod forest;
mod invariants;
mod lease;
mod node;
mod prune;
mod query;
mod scratch;
mod targets;
mod view;
mod view_build;

pub use change::{Growth, GrowthCursor};
pub use draft::DraftNode;
pub use error::ForestError;
pub use forest::TokenForest;
pub use lease::TreeLease;
pub use node::NodeKey;
pub use view::{Run, TreeView};
pub use view_build::ViewScratch;
