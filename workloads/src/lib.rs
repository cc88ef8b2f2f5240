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

use deft::plan::HeadShape;

pub use error::WorkloadError;
pub use medusa::MedusaRun;
pub use paper_io::{PaperIo, PaperMethod};
pub use reasoning::{ReasoningReplay, ReasoningRun, ReasoningStep};
pub use steps::{BuiltForest, StepTree, StepWorkload};

/// Heads of Llama-3-8B, which the paper measures with (DeFT, section 4.1).
pub const LLAMA3_8B: HeadShape = HeadShape { q_heads: 32, kv_heads: 8, head_dim: 128 };

/// Most tokens of a workload, all its nodes together.
pub const MAX_TOKENS: u64 = 1 << 28;
/// Most nodes of a tree.
pub const MAX_NODES: usize = 1 << 20;
