//! Language models on a GPU: their small operations and every stage of a pass against f64, whole models against the
//! CPU's, and a real one where `DEFT_MODEL` names its file.
//!
//! Without a GPU it says so and passes. Matrix products are cuBLAS's; `DEFT_CUBLAS` names its file or folder.

mod best;
mod formats;
mod ops;
mod plain;
mod prompts;
mod rank;
mod real;
mod retained;
mod rotate;
mod rows;
mod select;
mod soak;
mod stages;
mod walk;
