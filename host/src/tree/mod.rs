#![doc = include_str!("README.md")]

mod change;
mod compact;
mod draft;
mod error;
mod forest;
mod invariants;
mod merge;
mod node;
mod nodes;
mod own_pages;
mod prune;
mod query;
mod relocate;
mod residue;
mod scratch;
mod seal;
mod split;
mod take_over;
mod targets;
mod view;
mod view_build;

pub use change::{Growth, GrowthCursor};
pub use compact::HeadRows;
pub(crate) use compact::{Compacting, NodeRows, pages_for};
pub use draft::DraftNode;
pub use error::ForestError;
pub use forest::TokenForest;
pub use nodes::NodeKey;
pub(crate) use own_pages::{OwnPages, run};
pub use residue::{FeatureMap, Residue, Residues};
pub(crate) use seal::{Recoding, Span};
pub use view::{ResidueRun, Run, TreeView};
pub use view_build::ViewScratch;
pub(crate) use view_build::close_query_ranges;
