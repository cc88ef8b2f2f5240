//! Tree attention for LLM decoding.
//!
//! Modules point one way: [`tree`] and [`cache`] are metadata, [`plan`] turns them into plain arrays,
//! [`attention`] runs a plan.

pub mod attention;
pub mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod plan;
pub mod tree;
#[cfg(feature = "serde")]
pub mod workload;
