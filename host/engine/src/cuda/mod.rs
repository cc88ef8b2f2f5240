//! Llama-architecture models on NVIDIA GPUs (feature `cuda`).
//!
//! Weights and activations are bf16, sums and the residual stream f32. Matrix products are cuBLAS's, which is opened
//! at run time; everything else is this project's kernels.
//!
//! | file | what it adds |
//! |---|---|
//! | `cublas` | the library, found at run time, and row-major products by it |
//! | `weights` | a model's weights on the device |
//! | `buffers` | everything else a pass reads and writes |
//! | `forward` | the forward pass as enqueued work |
//! | `schedule` | which token is in which row, and the plan; no device |
//! | `rows`, `lane` | how many rows a pass has; its graph, and room for its plans |
//! | `options`, `model` | how a model is made; its forest and pages |
//! | `pass` | how a pass gets to the device, and its results back |
//! | `tree` | the model as a [`TreeModel`](crate::TreeModel) |
//! | `decode` | steps whose tokens stay on the device |
//! | `probe` | every stage's output, to find the first that is wrong |

mod buffers;
mod cublas;
mod decode;
mod error;
mod forward;
mod lane;
mod model;
mod options;
mod pass;
mod probe;
mod rows;
mod schedule;
mod tree;
mod weights;

pub use buffers::MAX_RANKED;
pub use cublas::{CublasError, VARIABLE as CUBLAS_VARIABLE};
pub use decode::{Choice, Decode};
pub use error::CudaModelError;
pub use model::CudaModel;
pub use options::{CudaMemory, CudaOptions};
pub use probe::{Probe, Stage};
pub use weights::CudaWeights;
