//! Tree attention for LLM decoding: queries that share a prefix read its keys and values once.
//!
//! ```
//! use deft::{DType, Device, Kv, TreeCache, bf16};
//!
//! // 8 query heads and 2 KV heads of 64.
//! let mut cache = TreeCache::builder(&Device::best())
//!     .layers(1).heads(8, 2, 64).dtype(DType::Bf16).capacity_bytes(4 << 20).build()?;
//! let rows = |n: usize, heads: usize| vec![bf16::ONE; n * heads * 64];
//! let prompt = cache.insert_root()?;
//! let batch = cache.batch(&[(prompt, 100)])?; // a prefill of 100 tokens, causal
//! let (kv, mut out) = (rows(100, 2), rows(100, 8));
//! cache.append(0, &batch, Kv::new(&kv, &kv))?; // every layer, with the same batch
//! cache.attend(0, &batch, &rows(100, 8), &mut out)?;
//! let leaves = cache.fork(prompt, 3)?; // three continuations; nothing is copied
//! let each_one: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
//! let mut batch = cache.batch(&each_one)?; // a token more on each leaf
//! for _ in 0..5 {
//!     let (kv, mut out) = (rows(3, 2), rows(3, 8));
//!     cache.append(0, &batch, Kv::new(&kv, &kv))?;
//!     cache.attend(0, &batch, &rows(3, 8), &mut out)?; // [leaves, q_heads, head_dim]
//!     assert!(out.iter().all(|&x| x == bf16::ONE));
//!     cache.advance(&mut batch, 1)?;
//! }
//! cache.prune(leaves[1])?; // its pages return
//! # Ok::<(), deft::CacheError>(())
//! ```
//!
//! [`TreeCache`] is the whole in one piece. Below it, modules point one way:
//!
//! | module | what |
//! |---|---|
//! | [`format`](mod@format) | how K and V of a page are stored |
//! | [`cache`] | pages: who owns them, how they lie, import and export |
//! | [`tree`] | forests of token runs: grow, fork, prune, draft and accept; the view that is planned |
//! | [`prefix`] | which tokens a forest holds, by their ids: prompts that share a beginning compute it once |
//! | [`retain`] | which tokens of a node are kept, and which are merged or dropped |
//! | [`saved`], [`restore`] | prefixes in files; who computes and who loads what is to come back |
//! | [`plan`] | from a view to a [`plan::Plan`], arrays that a backend executes; what it reads and writes |
//! | [`attention`] | backends: the CPU's, and what every one has to do |
//! | `cuda` | the GPU's, and the same for device pointers and streams (feature `cuda`) |
//!
//! `docs/using.md` has drafts, device pointers and CUDA graphs, `docs/prefixes.md` prompts that begin alike;
//! `docs/architecture.md` says how it works.

pub mod attention;
pub mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod format;
pub mod plan;
pub mod prefix;
pub mod restore;
pub mod retain;
pub mod saved;
pub mod tree;
mod tree_cache;

pub use attention::RotaryTable;
pub use cache::{DType, KvElement};
pub use format::KvFormat;
pub use half::{bf16, f16};
/// The records of plans and of kernels' arguments, and how K and V lie in a page.
pub use kernels_gpu::{abi, layout};
pub use plan::{Grouping, PlanUpdate};
pub use prefix::{Opened, PrefixStats};
pub use tree::{DraftNode, NodeKey};
pub use tree_cache::{
    Batch, CacheBuilder, CacheConfig, CacheError, Demoted, Device, FormatBytes, Kv, Out,
    RestoreFrom, Restored, Rows, RowsMut, Step, StepGraph, StepRun, TreeCache,
};

#[cfg(feature = "cuda")]
pub use tree_cache::{StepGpu, StepOptions};

/// The examples in the documentation.
#[cfg(doctest)]
mod documentation {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/prefixes.md")]
    struct Prefixes;
    #[doc = include_str!("../../docs/retention.md")]
    struct Retention;
    #[cfg(feature = "cuda")]
    #[doc = include_str!("../../docs/using.md")]
    struct Using;
}
