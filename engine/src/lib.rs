//! Language models that decode trees of tokens.

pub mod chat;
mod codec;
pub mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod gguf;
pub mod grown;
mod less;
mod prompt;
mod quiet;
pub mod ranked;
pub mod ranks;
mod retain;
pub mod safetensors;
pub mod select;
pub mod tokenizer;
mod traffic;
pub mod tree_model;
pub mod weights;

pub use chat::{ChatError, ChatTemplate, Message, Role};
pub use codec::TextCodec;
pub use config::{Activation, ConfigError, LlamaConfig, RopeScaling, Turn, Variant};
pub use cpu::{AttentionRows, CpuModel, CpuOptions, LoadError};
pub use gguf::Gguf;
pub use grown::{BestToken, Grown, GrownToken};
/// Random numbers by counter: weights, and the noise of samples that a device draws.
pub use kernels_gpu::random;
pub use less::read_less;
pub use ranked::Ranked;
pub use ranks::{Communicator, RankError};
pub use retain::Retain;
pub use select::{Select, Selected};
pub use tokenizer::{Control, TextStream, Tokenizer, TokenizerError};
pub use tree_model::{DraftToken, ModelError, Traffic, TreeModel};
pub use weights::{LayerTensor, Tensor, Weights, WeightsError};

/// The examples in the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/engine.md")]
struct Guide;

/// The examples in the page on several GPUs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/several-gpus.md")]
struct SeveralGpus;
