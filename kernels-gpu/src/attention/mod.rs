//! Fused tree attention: `attend` runs a plan's shares, `merge` puts partial results together.
//!
//! A block has one share of one KV head. Its producer warp streams the pages of the share's program into a ring
//! in shared memory (`producer`, `ring`); eight consumer warps take the program's work items one after the
//! other (`consume`), by `narrow` up to 16 rows and by `wide` above. So loads never wait for a work item's
//! beginning or end.

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod kernels;
pub mod tile;

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub use kernels::{Attend, Merge, attend, merge};
