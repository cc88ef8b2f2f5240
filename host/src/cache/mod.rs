//! The KV cache: pages, who owns them, and where they lie.

mod dtype;
mod pool;
mod shape;

pub use dtype::{DType, Elements, ElementsMut, KvElement};
pub use pool::{PagePool, PoolError};
pub use shape::{CacheShape, HEAD_DIMS, MAX_HEADS, ShapeError};

/// Index of a page: [`kernels_gpu::abi::PAGE_TOKENS`] tokens, of every layer and KV head.
pub type PageId = u32;
