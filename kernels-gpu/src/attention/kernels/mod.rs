//! The kernels. The figures that the host needs too are in [`super::tile`].

#![cfg_attr(
    not(target_arch = "nvptx64"),
    expect(
        clippy::needless_range_loop,
        reason = "arrays of registers are walked by index"
    )
)]

pub mod ampere;
mod block;
mod finish;
pub mod hopper;
mod merge;
mod page;
mod program;
mod query;
mod rows;
mod sink;
mod warp_tile;

use crate::abi::MergeRow;
use crate::entries::Arch;
use crate::layout;
use device::kernel;
use device::matrix::Row;
use device::wgmma::Accumulators;
use device::{self, Bf16, Element, F16};

pub use merge::{Merge, merge};

/// What an `attend` launch reads and writes. Grid: `[shares, kv_heads]`.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub q: *const u16,
    /// The layer's pages, `[page][kv_head][page elements]`, 16 bit (see [`crate::layout`]).
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
    /// The KV head's first page, and bytes from a page to the next.
    #[inline(always)]
    unsafe fn pages<const D: usize>(&self, kv_head: u32) -> (*const Row, u64) {
        let page_bytes = 2 * layout::page_elements(D as u32) as u64;
        let offset = (u64::from(kv_head) * page_bytes) as usize;
        // SAFETY: the pool holds pages of every KV head.
        let first = unsafe { self.pool.cast::<Row>().byte_add(offset) };
        (first, page_bytes * u64::from(self.kv_heads))
    }

    /// A share's program.
    #[inline(always)]
    unsafe fn program(&self, share: u32) -> *const u32 {
        // SAFETY: the share is one of the plan's.
        unsafe { self.programs.add(share as usize * self.stride as usize) }
    }
}

/// One block of `attend`, as the architecture that is compiled for has it. `KS = D / 16`, `NT = D / 8`, `O = D / 2`
/// for head dimension `D`.
#[inline(always)]
unsafe fn attend<E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize>(
    a: Attend,
) where
    [f32; O]: Accumulators,
{
    // SAFETY: the caller's.
    unsafe {
        match device::ARCH {
            Arch::Sm80 => ampere::attend::<E, D, KS, NT>(a),
            Arch::Sm90a => hopper::attend::<E, D, KS, NT, O>(a),
        }
    }
}

macro_rules! attend_entries {
    ($($name:ident, $element:ty, $d:literal;)+) => {
        kernel! { $(
            unsafe fn $name(
                q: *const u16,
                pool: *const u16,
                programs: *const u32,
                masks: *const u64,
                lengths: *const u32,
                out: *mut u16,
                lse: *mut f32,
                partial_o: *mut f32,
                partial_lse: *mut f32,
                stride: u32,
                kv_heads: u32,
                group: u32,
                partial_slots: u32,
                scale_log2: f32,
                soft_cap: f32,
            ) = |q, pool, programs, masks, lengths, out, lse, partial_o, partial_lse, stride, kv_heads, group,
                 partial_slots, scale_log2, soft_cap| attend::<$element, $d, { $d / 16 }, { $d / 8 }, { $d / 2 }>(
                Attend {
                    q, pool, programs, masks, lengths, out, lse, partial_o, partial_lse, stride, kv_heads, group,
                    partial_slots, scale_log2, soft_cap,
                },
            );
        )+ }
    };
}
attend_entries! {
    attend_bf16_d64, Bf16, 64;
    attend_bf16_d128, Bf16, 128;
    attend_bf16_d256, Bf16, 256;
    attend_f16_d64, F16, 64;
    attend_f16_d128, F16, 128;
    attend_f16_d256, F16, 256;
}

macro_rules! merge_entries {
    ($($name:ident, $element:ty, $d:literal;)+) => {
        kernel! { $(
            unsafe fn $name(
                partial_o: *const f32,
                partial_lse: *const f32,
                rows: *const MergeRow,
                slots: *const u32,
                out: *mut u16,
                lse: *mut f32,
                row_count: u32,
                partial_slots: u32,
                kv_heads: u32,
                group: u32,
            ) = |partial_o, partial_lse, rows, slots, out, lse, row_count, partial_slots, kv_heads, group| {
                merge::<$element, $d, { $d / 32 }>(Merge {
                    partial_o, partial_lse, rows, slots, out, lse, row_count, partial_slots, kv_heads, group,
                })
            };
        )+ }
    };
}
merge_entries! {
    merge_bf16_d64, Bf16, 64;
    merge_bf16_d128, Bf16, 128;
    merge_bf16_d256, Bf16, 256;
    merge_f16_d64, F16, 64;
    merge_f16_d128, F16, 128;
    merge_f16_d256, F16, 256;
}
