//! The KV cache: pages, who owns them, and where they lie.

#[cfg(feature = "cuda")]
pub(crate) mod device_rows;
mod directory;
mod dtype;
mod elastic;
mod extents;
mod fresh;
mod layer_search;
mod layers;
mod paged;
mod plane;
mod pool;
mod shape;
mod slabs;
mod storage;

pub use directory::Directory;
pub use dtype::{DType, Elements, ElementsMut, KvElement};
pub(crate) use elastic::elastic_pool;
pub use elastic::{Store, StoreBytes};
pub use layer_search::{LayerSearch, LayerTrial, PairOrder};
pub use layers::LayerMap;
pub use paged::{PagedOrder, PagedTable};
pub use pool::{PagePool, PoolError};
pub(crate) use shape::in_range;
pub use shape::{CacheShape, HEAD_DIMS, KERNEL_HEAD_DIMS, MAX_HEADS, ShapeError, padded_head_dim};
pub use slabs::SLAB_PAGES;
pub(crate) use slabs::SlabClass;
pub(crate) use storage::HostPages;

/// Index of a page: [`kernels_gpu::abi::PAGE_TOKENS`] tokens, of every layer and KV head.
pub type PageId = u32;
