//! Writing the KV cache: new tokens, moved tokens, tokens of other caches, and the counters of growing
//! nodes.
//!
//! Where elements are only moved within our pages or out of them they are 16-bit patterns, so bf16 and f16 share a
//! kernel. What comes in is looked at: V that is not finite is not kept as such (see `non_finite`). What a thread
//! moves is 16 bytes at a time: one token's eight dims, a row of a core matrix (see [`crate::layout`]).

mod advance;
mod append;
mod append_rope;
mod compact;
mod copy;
mod non_finite;
mod pad;
mod paged;

pub use advance::advance;
pub use append::append;
pub(crate) use append::place;
pub use append_rope::append_rope;
pub(crate) use append_rope::{kept_keys, load_pair, store_pair, turn_pair};
pub use compact::{compact, move_words};
pub use copy::copy;
pub(crate) use non_finite::{NAN, carries, is_finite, kept_key, kept_value};
pub use pad::pad_rows;
pub use paged::{export_pages, import_pages};

/// Threads of a block of any of these kernels.
pub const THREADS: u32 = 256;

/// 16 bytes: eight elements.
pub(crate) type Chunk = [u32; 4];
