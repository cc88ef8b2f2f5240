//! Writing the KV cache: new tokens, moved tokens, tokens of other caches, and the counters of growing
//! nodes.
//!
//! Where elements are only moved they are 16-bit patterns, so bf16 and f16 share a kernel. What a thread
//! moves is 16 bytes at a time: one token's eight dims, a row of a core matrix (see [`crate::layout`]).

mod advance;
mod append;
mod append_rope;
mod copy;
mod paged;

pub use advance::advance;
pub use append::append;
pub(crate) use append::place;
pub use append_rope::append_rope;
pub(crate) use append_rope::{load_pair, store_pair, turn_pair};
pub use copy::copy;
pub use paged::{export_pages, import_pages};

/// Threads of a block of any of these kernels.
pub const THREADS: u32 = 256;

/// 16 bytes: eight elements.
pub(crate) type Chunk = [u32; 4];
