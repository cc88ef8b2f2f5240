//! The KV cache: pages, who owns them, and where they lie.

mod pool;

pub use pool::{PagePool, PoolError};

/// Index of a page: [`kernels_gpu::abi::PAGE_TOKENS`] tokens, of every layer and KV head.
pub type PageId = u32;
