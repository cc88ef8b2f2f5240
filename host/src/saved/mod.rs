//! Prefixes in files: token ids, K and V.
//!
//! [`TreeCache::save`](crate::TreeCache::save) and [`load`](crate::TreeCache::load) write and read them. All numbers are
//! little-endian:
//!
//! ```text
//! "DEFTKV\r\n"                       8 bytes
//! version, kv_heads, head_dim, dtype   u32 each; dtype 0 is f16, 1 bf16, 2 f32
//! identity                             u64: what else K and V depend on
//! layers, tokens                       u32 each
//! sources                              u32 a layer: whose K and V it reads
//! ids                                  u32 a token
//! CRC-32 of all of the above           u32
//!
//! for each page of 64 tokens, the last with fewer:
//!     for each layer of its own: K [tokens, kv_heads, head_dim], V as K
//!     CRC-32 of the page
//! ```
//!
//! K and V are the cache's bits, keys rotated as they are there. Pages follow one another, so that any run of them is one
//! read.

mod error;
mod file;
mod header;
mod source;

pub use error::SavedError;
pub(crate) use file::Aside;
pub(crate) use header::{Checked, Header, pages};
pub use source::Input;
pub(crate) use source::Pages;
