//! Llama-architecture models on NVIDIA GPUs (feature `cuda`).
//!
//! Weights, activations, K and V are f16 or bf16 ([`CudaWeights::read`]), sums and the residual stream f32. Matrix products are cuBLAS's, which is opened
//! at run time; everything else is this project's kernels.
//!
//! ```no_run
//! use deft::{DType, cuda::CudaDevice};
//! use deft_engine::cuda::{Choice, CudaModel, CudaOptions, CudaWeights};
//! use deft_engine::{Gguf, TreeModel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gguf = Gguf::open("model.gguf".as_ref())?;
//! let device = CudaDevice::new(0)?;
//! let weights = CudaWeights::read(&device, gguf.weights(), DType::F16)?;
//! let mut model = CudaModel::new(&device, weights, CudaOptions::default())?;
//! let mut logits = Vec::new();
//! let prompt = model.insert_prompt(&[1, 2, 3], &mut logits)?;
//! let leaves = model.fork(prompt, 8)?;
//!
//! // Tokens by the host: the same calls as for a model on the CPU.
//! model.step(&leaves, &[10, 11, 12, 13, 14, 15, 16, 17], &mut logits)?;
//!
//! // Tokens by the device: steps are enqueued, and read when they are wanted.
//! let sampled = Choice { ranked: 4, temperature: 0.8, seed: 7 };
//! let mut decode = model.decode(&leaves, &[20; 8], sampled)?;
//! for _ in 0..100 {
//!     decode.step()?;
//! }
//! let continuations = decode.tokens()?; // [leaves][steps]
//! # assert_eq!(continuations.len(), 8);
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it adds |
//! |---|---|
//! | `library` | libraries of NVIDIA's, found at run time |
//! | `cublas` | row-major products by it |
//! | `nccl` | sums and gathers over ranks by it |
//! | `ranks` | a model's place among ranks, and a watch over those that do not come |
//! | `ops` | what a model does between its matrix products, attention apart: kernels and their launches |
//! | `weights` | a model's weights on the device |
//! | `buffers` | everything else a pass reads and writes |
//! | `forward`, `launches` | the forward pass as enqueued work |
//! | `rows` | how many rows a pass has |
//! | `options`, `model` | how a model is made; its cache |
//! | `pass` | a pass as a step of the cache, and its results back |
//! | `select` | what is asked of a pass, chosen on the device |
//! | `tree` | the model as a [`TreeModel`](crate::TreeModel) |
//! | `prompt` | prompts of the past: kept, demoted, brought back |
//! | `retain` | upkeep: dropping what a policy finds minor |
//! | `decode` | steps whose tokens stay on the device |
//! | `timing` | attention by itself |
//! | `probe` | every stage's output, to find the first that is wrong |
//! | `instrument` | the door to `probe`, to passes between events and to trees that were never computed, for benchmarks and tests |

mod best;
mod buffers;
mod cublas;
mod decode;
mod error;
mod forward;
pub mod instrument;
mod launches;
mod library;
mod model;
mod nccl;
pub mod ops;
mod options;
mod pass;
mod probe;
mod prompt;
mod ranks;
mod retain;
mod rows;
mod select;
mod tail;
mod timing;
mod tree;
mod weights;

pub use buffers::MAX_RANKED;
pub use cublas::{CublasError, VARIABLE as CUBLAS_VARIABLE};
pub use decode::{Choice, Decode};
pub use error::CudaModelError;
pub use model::CudaModel;
pub use nccl::{NcclError, VARIABLE as NCCL_VARIABLE};
pub use options::{CudaMemory, CudaOptions};
pub use weights::CudaWeights;
