//! Fused tree attention: `attend` runs a plan's shares, `merge` puts partial results together.
//!
//! A block has one share of one KV head and takes the work items of the share's program one after the other, while
//! the program's pages stream into shared memory without a halt. There is one `attend` an architecture, over the
//! same pieces: `hopper`, and `ampere` for what came before and after.

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod kernels;
pub mod tile;

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub use kernels::{
    Attend, Cache, CellPool, Coded, Codes, Compacted, Foreign, Format, Merge, Native, Pool, ampere,
    hopper, merge, score,
};
