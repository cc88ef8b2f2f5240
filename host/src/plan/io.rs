//! What a step reads and writes: as a plan issues it, and as the paper counts it.
//!
//! The two differ on purpose. The paper's tables (DeFT, Tables 11, 12 and 17) are analytic: they count
//! K and V at the width of the *query* heads, once a node, and leave out the partial results of split
//! KV. Here, K and V have KV-head width, a row tile that reads a page again counts again, and
//! partial results count when they are written and when they are read.

use kernels_gpu::abi::{MergeRow, PAGE_TOKENS, ProgramHeader, words_of};
use kernels_gpu::layout::prefix_elements;

use super::Plan;
use crate::tree::TreeView;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Query heads.
    pub q_heads: u32,
    /// KV heads, which divide the query heads.
    pub kv_heads: u32,
    /// Elements of a head's query, key and value.
    pub head_dim: u32,
}

impl HeadShape {
    /// Llama-3-8B's, which the paper measures with (DeFT, section 4.1).
    pub const LLAMA3_8B: Self = Self {
        q_heads: 32,
        kv_heads: 8,
        head_dim: 128,
    };

    /// Query heads a KV head.
    ///
    /// # Panics
    /// If there are no KV heads.
    pub const fn group_size(self) -> u32 {
        self.q_heads / self.kv_heads
    }
}

/// Bytes of one layer's attention in one step, as issued to the memory system (caches may serve some).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IssuedIo {
    /// K and V: whole groups of eight tokens of every page of every item.
    pub kv: u64,
    /// Queries, once an item.
    pub query: u64,
    /// Programs and merge tables, once a KV head.
    pub plan: u64,
    /// Masks.
    pub mask: u64,
    /// Partial results written, output and LSE in f32.
    pub partial_written: u64,
    /// Partial results read again to be merged.
    pub partial_read: u64,
    /// The output.
    pub output: u64,
    /// The LSE, if asked for.
    pub lse: u64,
}

impl IssuedIo {
    /// All that is read.
    pub fn read(&self) -> u64 {
        self.kv + self.query + self.plan + self.mask + self.partial_read
    }
    /// All that is written.
    pub fn written(&self) -> u64 {
        self.partial_written + self.output + self.lse
    }
}

impl Plan {
    /// What running this plan once, on one layer, reads and writes.
    ///
    /// `lengths` are those of [`TokenForest::lengths`](crate::tree::TokenForest::lengths): by length
    /// counter, 0 where it is too short. Queries and output have elements of `element_bytes`, as K and V
    /// have. The plan has to be made for `heads.group_size()`.
    pub fn issued_io(
        &self,
        heads: HeadShape,
        element_bytes: u32,
        lengths: &[u32],
        lse: bool,
    ) -> IssuedIo {
        let element = u64::from(element_bytes);
        let rows = |queries: u32| u64::from(queries) * u64::from(self.group_size);
        let mut io = IssuedIo::default();
        for share in 0..self.shares {
            for item in self.share(share).items() {
                let row_bytes = u64::from(heads.head_dim) * element;
                io.query += rows(item.record.query_count) * row_bytes;
                for segment in item.segments {
                    let length = lengths.get(segment.length_slot as usize);
                    let tokens = segment.tokens_at(length.copied().unwrap_or(0));
                    io.kv += kv_bytes(heads.head_dim, element_bytes, tokens);
                    if segment.mask != kernels_gpu::abi::NONE {
                        let pages = u64::from(tokens.div_ceil(PAGE_TOKENS));
                        io.mask += 8 * pages * u64::from(item.record.query_count);
                    }
                }
            }
            io.plan += 4 * self.program_words(share);
        }
        let merge_words = self.merge_rows.len() * words_of::<MergeRow>() as usize;
        io.plan += 4 * (merge_words + self.merge_slots.len()) as u64;
        let partial = 4 * (u64::from(heads.head_dim) + 1);
        io.partial_written = rows(self.partial_slots) * partial;
        io.partial_read = rows(self.merge_slots.len() as u32) * partial;
        io.output = rows(self.queries) * u64::from(heads.head_dim) * element;
        io.lse = if lse { 4 * rows(self.queries) } else { 0 };
        io.times(u64::from(heads.kv_heads))
    }

    fn program_words(&self, share: u32) -> u64 {
        let begin = share as usize * self.stride as usize;
        let header: &ProgramHeader = bytemuck::from_bytes(bytemuck::cast_slice(
            &self.words[begin..begin + words_of::<ProgramHeader>() as usize],
        ));
        u64::from(header.words)
    }
}

impl IssuedIo {
    fn times(self, n: u64) -> Self {
        Self {
            kv: n * self.kv,
            query: n * self.query,
            plan: n * self.plan,
            mask: n * self.mask,
            partial_written: n * self.partial_written,
            partial_read: n * self.partial_read,
            output: n * self.output,
            lse: n * self.lse,
        }
    }
}

/// Bytes of K and V that hold `tokens` tokens of one KV head, in whole groups of eight.
fn kv_bytes(head_dim: u32, element_bytes: u32, tokens: u32) -> u64 {
    let page = u64::from(prefix_elements(head_dim, PAGE_TOKENS));
    let tail = u64::from(prefix_elements(head_dim, tokens % PAGE_TOKENS));
    2 * (page * u64::from(tokens / PAGE_TOKENS) + tail) * u64::from(element_bytes)
}

/// Bytes of K and V of one layer that some query of `view` sees, each once, in whole groups of eight
/// tokens: the least that any plan reads.
pub fn unique_kv_bytes(view: &TreeView, heads: HeadShape, element_bytes: u32) -> u64 {
    let seen = view.runs.iter().filter(|run| !run.queries.is_empty());
    let bytes = seen.map(|run| kv_bytes(heads.head_dim, element_bytes, run.tokens));
    u64::from(heads.kv_heads) * bytes.sum::<u64>()
}
