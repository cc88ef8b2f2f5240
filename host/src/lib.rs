//! Tree attention for LLM decoding: queries that share a prefix read its keys and values once.
//!
//! ```
//! use deft::{CacheConfig, DType, Device, Grouping, TreeCache, bf16};
//!
//! let config = CacheConfig { layers: 1, q_heads: 8, kv_heads: 2, head_dim: 64, dtype: DType::Bf16,
//!     capacity_bytes: 4 << 20, scale: None, soft_cap: None };
//! let mut cache = TreeCache::new(&Device::best(), config)?;
//! let prompt = cache.insert_root(100)?;
//! let kv = vec![bf16::ONE; 100 * 2 * 64]; // [tokens, kv_heads, head_dim]
//! cache.append_tokens(0, prompt, 0..100, &kv, &kv)?;
//! let leaves = cache.fork(prompt, 3)?; // three continuations; nothing is copied
//! let mut plan = cache.plan(&leaves, Grouping::Flatten)?;
//! let (q, mut out) = (vec![bf16::ONE; 3 * 8 * 64], vec![bf16::ZERO; 3 * 8 * 64]);
//! for _ in 0..5 {
//!     cache.step(&mut plan)?; // a token more on each leaf, the plan with it
//!     let layer = 0; // every layer, with the same plan
//!     cache.append(layer, &plan, &kv[..3 * 2 * 64], &kv[..3 * 2 * 64])?;
//!     cache.attend(layer, &plan, &q, &mut out)?;
//! }
//! assert!(out.iter().all(|&x| x == bf16::ONE));
//! cache.prune(leaves[1])?; // its pages return; `leaves[0]` and `leaves[2]` go on with a new plan
//! # Ok::<(), deft::CacheError>(())
//! ```
//!
//! [`TreeCache`] is the whole in one piece. Below it, modules point one way:
//!
//! | module | what |
//! |---|---|
//! | [`cache`] | pages: who owns them, how they lie, import and export |
//! | [`tree`] | forests of token runs: grow, fork, prune, draft and accept; the view that is planned |
//! | [`plan`] | from a view to a [`plan::Plan`], arrays that a backend executes; what it reads and writes |
//! | [`attention`] | backends: the CPU's, and what every one has to do |
//! | `cuda` | the GPU's, and the same for device pointers and streams (feature `cuda`) |
//!
//! `docs/using.md` has drafts, device pointers and CUDA graphs; `docs/architecture.md` says how it works.

pub mod attention;
pub mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod plan;
pub mod tree;
mod tree_cache;

pub use attention::RotaryTable;
pub use cache::{DType, KvElement};
pub use half::{bf16, f16};
/// The records of plans and of kernels' arguments, and how K and V lie in a page.
pub use kernels_gpu::{abi, layout};
pub use plan::Grouping;
pub use tree::{DraftNode, NodeKey};
pub use tree_cache::{CacheConfig, CacheError, Device, PlanUpdate, TreeCache, TreePlan};

/// The examples in the documentation.
#[cfg(doctest)]
mod documentation {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[cfg(feature = "cuda")]
    #[doc = include_str!("../../docs/using.md")]
    struct Using;
}
