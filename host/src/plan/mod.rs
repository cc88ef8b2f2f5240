//! QKV preparation: grouping, splitting and scheduling (DeFT, section 3.3), as plain arrays.

mod check;
mod config;
mod cost;
mod cut;
mod display;
mod draft;
mod encode;
mod error;
mod io;
mod merge;
mod node;
mod patch;
mod planner;
mod program;
mod sequence;
mod tiles;

pub use config::{MAX_QUERIES, MAX_ROWS, MAX_SHARES, PlanConfig, shares_for};
pub use cost::CostModel;
pub use error::PlanError;
pub use io::{HeadShape, IssuedIo, PaperIo, PaperMethod, unique_kv_bytes};
pub use patch::Patch;
pub use planner::Planner;
pub use program::{Item, Plan, Share};

/// How queries and KV are grouped into work items.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Grouping {
    /// One query and its whole path, split evenly: Flash-Decoding, and the baseline that re-reads a
    /// shared prefix once a query.
    PerQuery,
    /// One tree node and all queries below it (DeFT-Node).
    Node,
    /// A fixed number of tokens of one node (DeFT-Node-Chunk).
    NodeChunk,
    /// The tree flattened depth first and cut into even shares (DeFT-Flatten).
    Flatten,
}
