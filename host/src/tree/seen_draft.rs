//! Draft nodes in a view, and the bits of their tokens.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;

/// A draft node that some query sees, in depth-first order.
#[derive(Clone, Debug)]
pub(super) struct SeenDraft {
    /// Parent's place in the list of drafts, or [`NONE`](kernels_gpu::abi::NONE).
    pub(super) parent: u32,
    /// Its tokens, by position in the block.
    pub(super) begin: u32,
    pub(super) end: u32,
    /// Its queries: one for each of its last tokens.
    pub(super) queries: Range<u32>,
    /// The same, of a grown draft in the end with those of the nodes below it.
    pub(super) below: Range<u32>,
}

impl SeenDraft {
    /// Where what each of its queries sees of the node ends, by position in the block: one token further each.
    pub(super) fn ends(&self) -> impl Iterator<Item = u32> {
        let rows = self.queries.end - self.queries.start;
        (0..rows).map(move |row| self.end - (rows - 1 - row))
    }
}

/// Bits of tokens `begin..end` within the page whose first token is `page_begin`.
pub(super) fn page_bits(begin: u32, end: u32, page_begin: u32) -> u64 {
    let begin = begin.clamp(page_begin, page_begin + PAGE_TOKENS) - page_begin;
    let end = end.clamp(page_begin, page_begin + PAGE_TOKENS) - page_begin;
    if begin == end {
        return 0;
    }
    (u64::MAX >> (PAGE_TOKENS - (end - begin))) << begin
}
