//! Entry points. Their parameters are the fields of the records that the kernels take: a pointer in a record would cost
//! generic loads.
#![expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]

use crate::Arch;
use crate::abi::{Cell, MergeRow};
use crate::attention::tile::{self, MERGE_THREADS};
use device::tensor::TensorMap;
use device::wgmma::Accumulators;
use device::{Bf16, Element, F16};

use super::{
    Attend, CellPool, Coded, Codes, Compacted, Foreign, Format, Merge, Native, Pool, ampere,
    hopper, score,
};
use kernel_macros::kernel;

/// Threads of an `attend` block on what is compiled for.
const ATTEND_THREADS: u32 = match device::ARCH {
    Arch::Sm80 => tile::ampere::THREADS,
    Arch::Sm90a => tile::hopper::THREADS,
};

/// Threads of one that decodes pages.
const fn coded_threads<const D: usize>() -> u32 {
    match device::ARCH {
        Arch::Sm80 => tile::ampere::THREADS,
        Arch::Sm90a => tile::hopper::Tile::<D>::CODED_THREADS,
    }
}

/// Dynamic shared memory of such a block, in bytes.
const fn attend_shared_bytes<const D: usize>() -> u32 {
    match device::ARCH {
        Arch::Sm80 => tile::ampere::Tile::<D>::SHARED_BYTES,
        Arch::Sm90a => tile::hopper::Tile::<D>::SHARED_BYTES,
    }
}

/// The same of a block that reads compacted nodes.
const fn compacted_shared_bytes<const D: usize>() -> u32 {
    match device::ARCH {
        Arch::Sm80 => tile::ampere::Tile::<D>::COMPACTED_SHARED_BYTES,
        Arch::Sm90a => tile::hopper::Tile::<D>::COMPACTED_SHARED_BYTES,
    }
}

/// An entry point of `attend`, with the parameters that all of them have. Others stand where the pool does, `reads(..)`,
/// and at the end, `more(..)`. Its body has them as one [`Attend`].
macro_rules! attend_entry {
    (
        $(#[$($attribute:tt)*])*
        $name:ident[$($generics:tt)*] reads($($read:ident: $reads:tt $of:tt $element:ty),*)
            more($($more:ident: $number:ty),*) where[$($bounds:tt)*]
        pool($pool:expr) |$a:ident| $run:expr
    ) => {
        $(#[$($attribute)*])*
        #[inline(always)]
        unsafe fn $name<$($generics)*>(
            q: *const u16,
            $($read: $reads $of $element,)*
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
            $($more: $number),*
        ) where $($bounds)* {
            let $a = Attend {
                q,
                pool: $pool,
                programs,
                masks,
                lengths,
                out,
                lse,
                partial_o,
                partial_lse,
                stride,
                kv_heads,
                group,
                partial_slots,
                scale_log2,
                soft_cap,
            };
            // SAFETY: the caller's.
            unsafe { $run }
        }
    };
}

attend_entry! {
    /// One block of `attend`. `KS = D / 16`, `NT = D / 8`, `O = D / 2` for head dimension `D`; `S` pages are in Hopper's
    /// ring.
    #[kernel(
        threads = ATTEND_THREADS,
        shared = attend_shared_bytes::<D>(),
        group = "attend_d{D}",
        instances(
            attend_bf16_d64: <Bf16, 64, 4, 8, 32, 12>,
            attend_bf16_d128: <Bf16, 128, 8, 16, 64, 6>,
            attend_bf16_d256: <Bf16, 256, 16, 32, 128, 3>,
            attend_f16_d64: <F16, 64, 4, 8, 32, 12>,
            attend_f16_d128: <F16, 128, 8, 16, 64, 6>,
            attend_f16_d256: <F16, 256, 16, 32, 128, 3>
        )
    )]
    attend[E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize, const S: u32]
    reads(pool: *const u16) more() where[[f32; O]: Accumulators,]
    pool(pool) |a| run::<E, Native, D, KS, NT, O, S>(a, Coded::default())
}

attend_entry! {
    /// [`attend`] over pages of a format, which `format` says.
    #[kernel(
        threads = coded_threads::<D>(),
        shared = attend_shared_bytes::<D>(),
        group = "attend_coded_d{D}",
        instances(
            attend_coded_bf16_d64: <Bf16, 64, 4, 8, 32, 8>,
            attend_coded_bf16_d128: <Bf16, 128, 8, 16, 64, 4>,
            attend_coded_bf16_d256: <Bf16, 256, 16, 32, 128, 2>,
            attend_coded_f16_d64: <F16, 64, 4, 8, 32, 8>,
            attend_coded_f16_d128: <F16, 128, 8, 16, 64, 4>,
            attend_coded_f16_d256: <F16, 256, 16, 32, 128, 2>
        )
    )]
    attend_coded[
        E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize, const S: u32
    ]
    reads(pool: *const u16) more(half_bytes: u32, per_slab: u32, format: u32)
    where[[f32; O]: Accumulators,]
    pool(pool) |a| {
        let coded = Coded { half_bytes, per_slab, format, ..Coded::default() };
        run::<E, Codes, D, KS, NT, O, S>(a, coded)
    }
}

attend_entry! {
    /// [`attend`] over compacted nodes: `pool` has their cells, and page ids are places in `cells`.
    #[kernel(
        threads = ATTEND_THREADS,
        shared = compacted_shared_bytes::<D>(),
        group = "attend_compacted_d{D}",
        instances(
            attend_compacted_bf16_d64: <Bf16, 64, 4, 8, 32, 12>,
            attend_compacted_bf16_d128: <Bf16, 128, 8, 16, 64, 6>,
            attend_compacted_bf16_d256: <Bf16, 256, 16, 32, 128, 3>,
            attend_compacted_f16_d64: <F16, 64, 4, 8, 32, 12>,
            attend_compacted_f16_d128: <F16, 128, 8, 16, 64, 6>,
            attend_compacted_f16_d256: <F16, 256, 16, 32, 128, 3>
        )
    )]
    attend_compacted[
        E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize, const S: u32
    ]
    reads(pool: *const u16, cells: *const Cell, biases: *const f32) more(cell_stride: u32)
    where[[f32; O]: Accumulators,]
    pool(pool) |a| {
        let coded = Coded { cells, cell_stride, biases, ..Coded::default() };
        run::<E, Compacted, D, KS, NT, O, S>(a, coded)
    }
}

attend_entry! {
    /// [`attend`] over K and V where another engine keeps them ([`Foreign`]); for blocks of few tokens on Hopper too.
    #[kernel(
        threads = tile::ampere::THREADS,
        shared = tile::ampere::Tile::<D>::SHARED_BYTES,
        group = "attend_in_place_d{D}",
        instances(
            attend_in_place_bf16_d64: <Bf16, 64, 4, 8>,
            attend_in_place_bf16_d128: <Bf16, 128, 8, 16>,
            attend_in_place_f16_d64: <F16, 64, 4, 8>,
            attend_in_place_f16_d128: <F16, 128, 8, 16>
        )
    )]
    attend_in_place[E: Element, const D: usize, const KS: usize, const NT: usize]
    reads(k: *const u16, v: *const u16, table: *const u32)
    more(
        k_block: u32, k_token: u32, k_head: u32, v_block: u32, v_token: u32, v_head: u32, shift: u32
    ) where[]
    pool(core::ptr::null()) |a| {
        let strides = [[k_block, k_token, k_head], [v_block, v_token, v_head]];
        let cache = Foreign { k, v, table, strides, shift };
        ampere::attend::<E, Native, _, D, KS, NT>(a, cache, Coded::default())
    }
}

attend_entry! {
    /// [`attend_in_place`] on Hopper, by tensor maps ([`hopper::Boxes`]): blocks have eight tokens or more.
    #[kernel(
        threads = tile::hopper::THREADS,
        shared = tile::hopper::Tile::<D>::SHARED_BYTES,
        group = "attend_boxes_d{D}",
        archs("sm_90a"),
        instances(
            attend_boxes_bf16_d64: <Bf16, 64, 4, 8, 32, 12>,
            attend_boxes_bf16_d128: <Bf16, 128, 8, 16, 64, 6>,
            attend_boxes_f16_d64: <F16, 64, 4, 8, 32, 12>,
            attend_boxes_f16_d128: <F16, 128, 8, 16, 64, 6>
        )
    )]
    attend_boxes[E: Element, const D: usize, const KS: usize, const NT: usize, const O: usize, const S: u32]
    reads(k: *const TensorMap, v: *const TensorMap, table: *const u32) more(shift: u32)
    where[[f32; O]: Accumulators,]
    pool(core::ptr::null()) |a| {
        let boxes = hopper::Boxes { k, v, table, shift };
        hopper::attend::<E, Native, _, D, KS, NT, O, S>(a, boxes, Coded::default())
    }
}

#[inline(always)]
unsafe fn run<
    E: Element,
    F: Format,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const O: usize,
    const S: u32,
>(
    a: Attend,
    coded: Coded,
) where
    [f32; O]: Accumulators,
{
    // SAFETY: the caller's.
    unsafe {
        match device::ARCH {
            Arch::Sm80 if F::COMPACTED => {
                ampere::attend::<E, F, CellPool, D, KS, NT>(a, CellPool, coded);
            }
            Arch::Sm80 => ampere::attend::<E, F, Pool, D, KS, NT>(a, Pool, coded),
            Arch::Sm90a => hopper::attend::<E, F, Pool, D, KS, NT, O, S>(a, Pool, coded),
        }
    }
}

/// One block of `merge`. `V = D / 32` for head dimension `D`.
#[kernel(
    threads = MERGE_THREADS,
    min_blocks = 2,
    instances(
        merge_bf16_d64: <Bf16, 64, 2>,
        merge_bf16_d128: <Bf16, 128, 4>,
        merge_bf16_d256: <Bf16, 256, 8>,
        merge_f16_d64: <F16, 64, 2>,
        merge_f16_d128: <F16, 128, 4>,
        merge_f16_d256: <F16, 256, 8>
    )
)]
#[inline(always)]
unsafe fn merge<E: Element, const D: usize, const V: usize>(
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
) {
    let m = Merge {
        partial_o,
        partial_lse,
        rows,
        slots,
        out,
        lse,
        row_count,
        partial_slots,
        kv_heads,
        group,
    };
    // SAFETY: the caller's.
    unsafe { super::merge::<E, D, V>(m) }
}

/// One block of `score`. `KS = D / 16` for head dimension `D`.
#[kernel(
    threads = tile::score::threads(device::ARCH),
    shared = tile::score::shared_bytes::<D>(device::ARCH),
    group = "score_d{D}",
    instances(
        score_bf16_d64: <Bf16, 64, 4>,
        score_bf16_d128: <Bf16, 128, 8>,
        score_bf16_d256: <Bf16, 256, 16>,
        score_f16_d64: <F16, 64, 4>,
        score_f16_d128: <F16, 128, 8>,
        score_f16_d256: <F16, 256, 16>
    )
)]
#[inline(always)]
unsafe fn score<E: Element, const D: usize, const KS: usize>(
    q: *const u16,
    pool: *const u16,
    cells: *const Cell,
    biases: *const f32,
    programs: *const u32,
    masks: *const u64,
    lengths: *const u32,
    lse: *const f32,
    visible: *const u32,
    scores: *mut u32,
    stride: u32,
    cell_stride: u32,
    kv_heads: u32,
    group: u32,
    scale_log2: f32,
    soft_cap: f32,
    reduce: u32,
) {
    let s = score::Score {
        q,
        pool,
        cells,
        biases,
        programs,
        masks,
        lengths,
        lse,
        visible,
        scores,
        stride,
        cell_stride,
        kv_heads,
        group,
        scale_log2,
        soft_cap,
        reduce,
    };
    // SAFETY: the caller's.
    unsafe {
        match device::ARCH {
            Arch::Sm80 => score::ampere::score::<E, D, KS>(s),
            Arch::Sm90a => score::hopper::score::<E, D, KS>(s),
        }
    }
}
