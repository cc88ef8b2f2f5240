//! QKV preparation: grouping, splitting and scheduling (DeFT, section 3.3), as plain arrays.
//!
//! ```text
//! TreeView --check--> sequence of pieces --cut or deal--> draft: items in shares --score, encode--> Plan
//! ```
//!
//! All groupings go the same way. The *sequence* lists what is read, in order: every tree depth first in
//! row tiles, or every query's path. *Cutting* (PerQuery, Flatten) divides it into consecutive shares of
//! near-equal cost; *dealing* (Node, NodeChunk) makes items within nodes and gives each to the share that
//! has least to do. An item whose queries no other item has writes the output itself, all others leave
//! partial results that are merged in a fixed order. [`Plan::patch`] keeps a plan while nodes grow.
//!
//! ```
//! use deft::{cache::PagePool, plan::{Grouping, PlanConfig, Planner}, tree::TokenForest};
//!
//! let mut forest = TokenForest::new(PagePool::new(100)?);
//! let prompt = forest.insert_root(4000)?;
//! let leaves = forest.fork(prompt, 8)?;
//! forest.extend(&leaves, 30)?;
//! let mut planner = Planner::new(PlanConfig::new(Grouping::Flatten, 4, 128, 16))?;
//! let plan = planner.plan(&forest.view(&leaves)?)?;
//! assert_eq!((plan.queries(), plan.shares()), (8, 16));
//! assert!(plan.imbalance() < 1.2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block_tables;
mod check;
mod choose;
mod config;
mod cost;
mod cut;
mod display;
mod draft;
mod encode;
mod error;
mod fill;
mod floors;
mod gpus;
mod io;
mod merge;
mod node;
mod patch;
mod planner;
mod program;
mod score;
mod sequence;
mod split;
mod tiles;

pub use block_tables::{BlockTables, BlockTablesError, PagedPlan};
pub(crate) use config::MAX_ROWS;
pub use config::{Candidates, PlanConfig, shares_for};
pub use cost::CostModel;
pub use error::PlanError;
pub use io::{HeadShape, IssuedIo, unique_kv_bytes};
pub use patch::{Patch, PlanUpdate};
pub use planner::Planner;
pub use program::{Item, Plan, PlanResidue, Share};
pub use split::LaunchPages;

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
