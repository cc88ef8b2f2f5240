//! Token forests: which tokens a query sees.

mod view;

pub use view::{Run, TreeView};
