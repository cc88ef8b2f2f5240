//! Language models that decode trees of tokens, and search over such trees.

pub mod tree_model;

pub use tree_model::{DraftToken, ModelError, Traffic, TreeModel};
