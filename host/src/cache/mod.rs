//! The KV cache: pages, who owns them, and where they lie.

mod dtype;
mod paged;
mod pool;
mod shape;
mod storage;

pub use dtype::{DType, Elements, ElementsMut, KvElement};
pub(crate) use paged::named_twice;
pub use paged::{PagedError, PagedOrder, PagedTable};
pub use pool::{PagePool, PoolError};
pub use shape::{CacheShape, HEAD_DIMS, MAX_HEADS, ShapeError};
pub use storage::HostPages;

/// Index of a page: [`kernels_gpu::abi::PAGE_TOKENS`] tokens, of every layer and KV head.
pub type PageId = u32;
