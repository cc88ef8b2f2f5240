//! Recorded and synthetic tree workloads: reading them, and replaying them on a forest.
//!
//! Three kinds, one module each, and [`PaperIo`], what the paper's formulas say of a step. Files come from anywhere, so every number in them is checked before
//! it is used; see [`WorkloadError`].

mod error;
mod medusa;
mod paper_io;
mod reasoning;
mod shape;
mod steps;

pub use error::WorkloadError;
pub use medusa::MedusaRun;
pub use paper_io::{PaperIo, PaperMethod};
pub use reasoning::{ReasoningReplay, ReasoningRun, ReasoningStep};
pub use steps::{BuiltForest, StepTree, StepWorkload};

/// Most tokens of a workload, all its nodes together.
pub const MAX_TOKENS: u64 = 1 << 28;
/// Most nodes of a tree.
pub const MAX_NODES: usize = 1 << 20;
