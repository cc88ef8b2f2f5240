//! Language models that decode trees of tokens, and search over such trees.

pub mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod gguf;
pub mod search;
pub mod tasks;
mod traffic;
pub mod tree_model;
pub mod weights;

pub use config::{ConfigError, LlamaConfig, RopeScaling};
pub use cpu::{CpuModel, CpuOptions, LoadError};
pub use gguf::Gguf;
pub use tree_model::{DraftToken, ModelError, Traffic, TreeModel};
pub use weights::{LayerTensor, Tensor, Weights, WeightsError};
