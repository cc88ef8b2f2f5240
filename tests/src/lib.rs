//! What the test files share: random forests, inputs and comparisons.

pub mod coverage;
pub mod emulated;
pub mod instructions;
pub mod problem;
pub mod reference;
pub mod shadow;
pub mod views;
pub mod workloads;
