//! The kernels by name, and how each is launched: the one table that the build (launch bounds in PTX)
//! and the host (block size, shared memory) read.

pub use device::Arch;

use crate::attention::tile;
use crate::model::limits as model;

/// A kernel's entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Symbol of the `extern "ptx-kernel"` function.
    pub name: &'static str,
    /// PTX file it goes into, `ptx/<arch>/<group>.ptx`. The driver compiles a file as a whole when it is
    /// loaded, so kernels that are used together share one.
    pub group: &'static str,
    /// Architectures it is built for with these figures; a name may have one row for each.
    pub archs: &'static [Arch],
    /// Most threads in a block (`.maxntid`).
    pub threads: u32,
    /// Blocks that must fit on a multiprocessor (`.minnctapersm`): with `threads` it bounds the registers.
    pub min_blocks: u32,
    /// Most dynamic shared memory a launch may ask for, in bytes.
    pub shared_bytes: u32,
}

/// Dynamic shared memory of the kernels that test instructions, in bytes.
pub const SELFTEST_SHARED_BYTES: u32 = 64 * 1024;

/// Every entry point of this crate.
pub const ENTRIES: &[Entry] = &[
    plain("read_flush", "bench", 512),
    plain("advance_counters", "cache", 256),
    plain("append_d64", "cache", 256),
    plain("append_d128", "cache", 256),
    plain("append_d256", "cache", 256),
    plain("append_rope_bf16_d64", "cache", 256),
    plain("append_rope_bf16_d128", "cache", 256),
    plain("append_rope_bf16_d256", "cache", 256),
    plain("append_rope_f16_d64", "cache", 256),
    plain("append_rope_f16_d128", "cache", 256),
    plain("append_rope_f16_d256", "cache", 256),
    plain("copy_d64", "cache", 256),
    plain("copy_d128", "cache", 256),
    plain("copy_d256", "cache", 256),
    plain("import_pages_d64", "cache", 256),
    plain("import_pages_d128", "cache", 256),
    plain("import_pages_d256", "cache", 256),
    plain("export_pages_d64", "cache", 256),
    plain("export_pages_d128", "cache", 256),
    plain("export_pages_d256", "cache", 256),
    hopper::<64>("attend_d64", "attend_bf16_d64"),
    hopper::<128>("attend_d128", "attend_bf16_d128"),
    hopper::<256>("attend_d256", "attend_bf16_d256"),
    hopper::<64>("attend_d64", "attend_f16_d64"),
    hopper::<128>("attend_d128", "attend_f16_d128"),
    hopper::<256>("attend_d256", "attend_f16_d256"),
    ampere::<64>("attend_d64", "attend_bf16_d64"),
    ampere::<128>("attend_d128", "attend_bf16_d128"),
    ampere::<256>("attend_d256", "attend_bf16_d256"),
    ampere::<64>("attend_d64", "attend_f16_d64"),
    ampere::<128>("attend_d128", "attend_f16_d128"),
    ampere::<256>("attend_d256", "attend_f16_d256"),
    merge("merge_bf16_d64"),
    merge("merge_bf16_d128"),
    merge("merge_bf16_d256"),
    merge("merge_f16_d64"),
    merge("merge_f16_d128"),
    merge("merge_f16_d256"),
    plain("embed_bf16", "model", model::THREADS),
    norm("rms_norm_bf16"),
    plain("silu_mul_bf16", "model", model::THREADS),
    plain("fill_random_bf16", "model", model::THREADS),
    plain("embed_f16", "model", model::THREADS),
    norm("rms_norm_f16"),
    plain("silu_mul_f16", "model", model::THREADS),
    plain("fill_random_f16", "model", model::THREADS),
    plain("rotate_append_bf16_d64", "model", model::THREADS),
    plain("rotate_append_bf16_d128", "model", model::THREADS),
    plain("rotate_append_bf16_d256", "model", model::THREADS),
    plain("rotate_append_f16_d64", "model", model::THREADS),
    plain("rotate_append_f16_d128", "model", model::THREADS),
    plain("rotate_append_f16_d256", "model", model::THREADS),
    rank("log_softmax_top_k"),
    rank("sample_top_k"),
    plain("feed_tokens", "model", model::THREADS),
    plain("fill_random_f32", "model", model::THREADS),
    selftest("selftest_arithmetic", 256),
    selftest("selftest_conversions", 128),
    selftest("selftest_shared_widths", 64),
    selftest("selftest_global_widths", 64),
    selftest("selftest_bulk_copies", 64),
    selftest("selftest_async_copies", 64),
    selftest("selftest_shuffles", 32),
    selftest("selftest_votes", 64),
    selftest("selftest_barriers", 128),
    selftest("selftest_ldmatrix", 32),
    selftest("selftest_stmatrix", 32),
    selftest("selftest_mma_bf16", 32),
    selftest("selftest_mma_f16", 32),
    selftest("selftest_last_arriver", 64),
    selftest("selftest_message", 64),
    selftest("selftest_wgmma_n8", 128),
    selftest("selftest_wgmma_n16", 128),
    selftest("selftest_wgmma_n32", 128),
    selftest("selftest_wgmma_n64", 128),
    selftest("selftest_wgmma_n128", 128),
    selftest("selftest_wgmma_n64_trans_a", 128),
    selftest("selftest_wgmma_n64_trans_b", 128),
    selftest("selftest_wgmma_n128_trans_ab", 128),
    selftest("selftest_wgmma_n256_trans_b", 128),
    selftest("selftest_wgmma_n64_registers", 128),
    selftest("selftest_wgmma_n128_registers_trans_b", 128),
];

/// A kernel for all architectures that uses no shared memory and few registers.
const fn plain(name: &'static str, group: &'static str, threads: u32) -> Entry {
    Entry {
        name,
        group,
        archs: &Arch::ALL,
        threads,
        min_blocks: 2,
        shared_bytes: 0,
    }
}

/// An `attend` kernel on Hopper, for head dimension `D`.
const fn hopper<const D: usize>(group: &'static str, name: &'static str) -> Entry {
    Entry {
        name,
        group,
        archs: &[Arch::Sm90a],
        threads: tile::hopper::THREADS,
        min_blocks: 1,
        shared_bytes: tile::hopper::Tile::<D>::SHARED_BYTES,
    }
}

/// An `attend` kernel on everything else, for head dimension `D`.
const fn ampere<const D: usize>(group: &'static str, name: &'static str) -> Entry {
    Entry {
        name,
        group,
        archs: &[Arch::Sm80],
        threads: tile::ampere::THREADS,
        min_blocks: 1,
        shared_bytes: tile::ampere::Tile::<D>::SHARED_BYTES,
    }
}

/// A `merge` kernel.
const fn merge(name: &'static str) -> Entry {
    plain(name, "merge", tile::MERGE_THREADS)
}

/// A kernel that normalises rows.
const fn norm(name: &'static str) -> Entry {
    Entry {
        min_blocks: 1,
        shared_bytes: model::NORM_SHARED_BYTES,
        ..plain(name, "model", model::NORM_THREADS)
    }
}

/// A kernel that ranks rows of logits.
const fn rank(name: &'static str) -> Entry {
    Entry {
        min_blocks: 1,
        shared_bytes: model::TOP_K_SHARED_BYTES,
        ..plain(name, "model", model::TOP_K_THREADS)
    }
}

/// A kernel that tests instructions, in one block on a multiprocessor.
const fn selftest(name: &'static str, threads: u32) -> Entry {
    Entry {
        archs: &[Arch::Sm90a],
        min_blocks: 1,
        shared_bytes: SELFTEST_SHARED_BYTES,
        ..plain(name, "selftest", threads)
    }
}

/// The row of `name` for `arch`.
pub fn find(name: &str, arch: Arch) -> Option<&'static Entry> {
    ENTRIES
        .iter()
        .find(|entry| entry.name == name && entry.archs.contains(&arch))
}
