//! The kernels. The figures that the host needs too are in [`super::tile`].

#![cfg_attr(
    not(target_arch = "nvptx64"),
    expect(clippy::needless_range_loop, reason = "arrays of registers are walked by index")
)]

pub mod ampere;
mod block;
mod cache;
mod cells;
mod cursor;
mod entries;
mod finish;
mod format;
mod group_layout;
pub mod hopper;
mod merge;
mod page;
mod program;
mod query;
mod rows;
pub mod score;
mod sink;
mod warp_tile;

pub use cache::{Cache, CellPool, Foreign, Pool};
pub use format::{Coded, Codes, Compacted, Format, Native};
pub use merge::{Merge, merge};

/// What an `attend` launch reads and writes. Grid: `[shares, kv_heads]`.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub q: *const u16,
    /// The layer's pages, `[page][kv_head][page elements]`, 16 bit (see [`crate::layout`]); null where there are none.
    pub pool: *const u16,
    /// The plan's programs, `[shares][stride]` words.
    pub programs: *const u32,
    /// The plan's masks.
    pub masks: *const u64,
    /// Node lengths by slot.
    pub lengths: *const u32,
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub out: *mut u16,
    /// `[queries, q_heads]`, natural logarithm; null if not wanted.
    pub lse: *mut f32,
    /// `[kv_heads][partial_slots][group][head_dim]`, normalised.
    pub partial_o: *mut f32,
    /// `[kv_heads][partial_slots][group]`, base 2.
    pub partial_lse: *mut f32,
    /// Words from one program to the next; a multiple of 4.
    pub stride: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Query heads a KV head.
    pub group: u32,
    /// Partial slots a KV head.
    pub partial_slots: u32,
    /// Logit scale times log2(e).
    pub scale_log2: f32,
    /// Logits `s` become `cap tanh(s / cap)`; 0 for none.
    pub soft_cap: f32,
}

impl Attend {
    /// A share's program.
    #[inline(always)]
    unsafe fn program(&self, share: u32) -> *const u32 {
        // SAFETY: the share is one of the plan's.
        unsafe { self.programs.add(share as usize * self.stride as usize) }
    }
}
