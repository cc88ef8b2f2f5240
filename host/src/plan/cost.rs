//! What a plan's parts cost, so that shares can be made even.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::CORE;

use crate::cache::DType;
use crate::format::{KvFormat, PageShape};

/// Cost of one share's work, in nanoseconds of the thread block that runs it.
///
/// | constant | H100 | where from |
/// |---|---|---|
/// | `bytes_per_ns` | 42 | fitted: best balance between nodes that one tile reads and nodes that several do |
/// | `flops_per_ns` | 4,400 | estimated: `spec64_ctx32k` with row tiles of 64 and of 128, less an assumed 12 us of fixed cost |
/// | `item_ns` | 1,500 | fitted, of little weight: load queries, drain the pipeline, scale and store |
/// | `cache_bytes_per_ns` | 66 | estimated from the same times: what a share asked for; the cache may give more |
/// | `partial_bytes_per_ns` | 30 | fitted, between 21.7 (`spec64_ctx4k`) and what long contexts want |
/// | `memory_bytes_per_ns` | 23.4 | measured: 3,088 GB/s over 132 SMs |
/// | `cache_bytes` | 198,000 | half of 50 MB over 132 SMs: an SM's reads go through its own half of the cache |
/// | `launch_ns` | 4,800 | measured: a graph of one small kernel and its first trips to memory |
/// | `merge_ns` | 1,800 | fitted to 449 timed plans of 40 drawn trees, as the next two |
/// | `merge_slot_ns` | 90 | a warp asks for eight partial results of its row at a time, and waits 700 ns |
/// | `tail_tokens` | 64 | a page takes as long if it holds 15 tokens as if it holds 64 |
/// | `decode_bytes_per_ns` | 300 | of 60 to 1,000 the best for eight trees in fp8: what decoding takes from products beside it |
///
/// `deft-bench trees --cost NAME=VALUE` tries another; what was tried is in docs/notebook.md. An SM alone can read faster than its
/// 1/132 of 3,088 GB/s, and does so beside others that read from the cache: hence 42 for a share by itself and
/// 23.4 for the mean of all.
///
/// A page of `n` tokens costs `max(bytes / bytes_per_ns, rows x n x head_dim x 4 / flops_per_ns)`, the
/// rows rounded up to what the kernels' tiles hold (16, 64, 128, 256) and the tokens to `tail_tokens`. Where plans are
/// compared, a product of 64 dims costs 1.5 times its part of one of 128, one of 256 dims 1.4 times, and a row 1.12 times
/// as much in a tile of up to 64. Pages that several row tiles, or PerQuery's queries, read while they are in the cache
/// cost `bytes / cache_bytes_per_ns` instead. Of pages in a format `bytes` are those of their codes, and products wait for
/// `native bytes / decode_bytes_per_ns` besides. A partial slot costs its bytes once written and once read.
///
/// The whole plan takes `launch_ns`, and what its costliest share takes and what all that comes from memory takes at the
/// shares' mean rate: these delay each other, by the cube root of the sum of their cubes. Where there are partial results
/// it takes `merge_ns` besides, and a `merge_slot_ns` for each of the row that has most.
///
/// [`CostModel::of_gpu`] has those of other GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CostModel {
    /// KV bytes a share reads in a nanosecond from memory.
    pub bytes_per_ns: f64,
    /// Floating-point operations of a share in a nanosecond.
    pub flops_per_ns: f64,
    /// Fixed cost of a work item.
    pub item_ns: f64,
    /// KV bytes that a share reads in a nanosecond while they are in the cache.
    pub cache_bytes_per_ns: f64,
    /// Bytes of partial results that a share writes, or reads back, in a nanosecond.
    pub partial_bytes_per_ns: f64,
    /// KV bytes from memory in a nanosecond, a share's part of what all read at once.
    pub memory_bytes_per_ns: f64,
    /// Bytes that the cache keeps until they are read again, a share's part.
    pub cache_bytes: f64,
    /// Fixed cost of a plan.
    pub launch_ns: f64,
    /// Fixed cost of merging partial results.
    pub merge_ns: f64,
    /// What the merge waits for besides, for each partial result of the row that has most.
    pub merge_slot_ns: f64,
    /// Bytes of native elements that are decoded in a nanosecond.
    pub decode_bytes_per_ns: f64,
    /// Tokens to whose multiple those of a run's last page are rounded up: 64 where a page takes as long if it is not full.
    pub tail_tokens: f64,
}

impl CostModel {
    /// An H100 with one thread block an SM.
    pub const H100: Self = Self {
        bytes_per_ns: 42.0,
        flops_per_ns: 4_400.0,
        item_ns: 1_500.0,
        cache_bytes_per_ns: 66.0,
        partial_bytes_per_ns: 30.0,
        memory_bytes_per_ns: 3_088.0 / 132.0,
        cache_bytes: 198_000.0,
        launch_ns: 4_800.0,
        merge_ns: 1_800.0,
        merge_slot_ns: 90.0,
        decode_bytes_per_ns: 300.0,
        tail_tokens: 64.0,
    };
    /// One core of a CPU: a few GB/s of the shared memory bus, 8-lane FMA at half its rate.
    pub(crate) const CPU_CORE: Self = Self {
        bytes_per_ns: 8.0,
        flops_per_ns: 24.0,
        item_ns: 500.0,
        cache_bytes_per_ns: 16.0,
        partial_bytes_per_ns: 16.0,
        memory_bytes_per_ns: 8.0,
        cache_bytes: 2_000_000.0,
        launch_ns: 5_000.0,
        merge_ns: 1_000.0,
        merge_slot_ns: 10.0,
        decode_bytes_per_ns: 4.0,
        tail_tokens: 8.0,
    };

    /// Every constant by its field's name.
    pub(super) const fn constants(&self) -> [(&'static str, f64); 12] {
        [
            ("bytes_per_ns", self.bytes_per_ns),
            ("flops_per_ns", self.flops_per_ns),
            ("item_ns", self.item_ns),
            ("cache_bytes_per_ns", self.cache_bytes_per_ns),
            ("partial_bytes_per_ns", self.partial_bytes_per_ns),
            ("memory_bytes_per_ns", self.memory_bytes_per_ns),
            ("cache_bytes", self.cache_bytes),
            ("launch_ns", self.launch_ns),
            ("merge_ns", self.merge_ns),
            ("merge_slot_ns", self.merge_slot_ns),
            ("decode_bytes_per_ns", self.decode_bytes_per_ns),
            ("tail_tokens", self.tail_tokens),
        ]
    }
}

impl Default for CostModel {
    fn default() -> Self {
        Self::H100
    }
}

/// A cost model for one head shape, as the planner's loops want it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    group_size: u32,
    page: PageShape,
    /// What the tokens of a run are rounded up to, in groups of eight.
    step: u32,
    merge_ns: f64,
    merge_slot_ns: f64,
    /// Reading one group of eight tokens.
    group_ns: f64,
    /// The same, when other shares read it as well.
    shared_group_ns: f64,
    /// Decoding one.
    decode_ns: f64,
    /// Computing one row against one group of eight tokens.
    row_ns: f64,
    /// What products cost in a score over what they cost in a cut.
    product_factor: f64,
    pub(super) item_ns: f64,
    /// One query's partial slot, written and read.
    pub(super) slot_ns: f64,
    /// Reading one group of eight tokens when all shares read from memory.
    pub(super) memory_group_ns: f64,
    /// Groups of eight tokens that the cache keeps, a share's part.
    pub(super) cache_groups: f64,
    pub(super) launch_ns: f64,
}

/// What a row costs in a tile of up to 64, over what it costs in a wider one.
const NARROW_ROW: f64 = 1.12;

/// Token groups of a full page.
pub(super) const PAGE_GROUPS: u32 = PAGE_TOKENS / CORE;

impl Costs {
    pub(super) fn new(
        model: &CostModel,
        group_size: u32,
        head_dim: u32,
        element_bytes: u32,
    ) -> Self {
        let group_elements = f64::from(CORE) * f64::from(head_dim);
        let group_bytes = 2.0 * group_elements * f64::from(element_bytes);
        let slot_bytes = f64::from(group_size) * (f64::from(head_dim) + 1.0) * 4.0;
        Self {
            group_size,
            page: page_shape(head_dim, element_bytes),
            group_ns: group_bytes / model.bytes_per_ns,
            shared_group_ns: group_bytes / model.cache_bytes_per_ns.max(model.bytes_per_ns),
            decode_ns: group_bytes / model.decode_bytes_per_ns,
            row_ns: 4.0 * group_elements / model.flops_per_ns,
            product_factor: product_factor(head_dim),
            step: ((model.tail_tokens / f64::from(CORE)) as u32).clamp(1, PAGE_GROUPS),
            merge_ns: model.merge_ns,
            merge_slot_ns: model.merge_slot_ns,
            item_ns: model.item_ns,
            slot_ns: 2.0 * slot_bytes / model.partial_bytes_per_ns,
            memory_group_ns: group_bytes / model.memory_bytes_per_ns,
            cache_groups: model.cache_bytes / group_bytes,
            launch_ns: model.launch_ns,
        }
    }

    /// What token groups cost in an item of `queries` queries.
    #[inline]
    pub(super) fn rates(&self, queries: u32) -> Rates {
        self.rates_in(queries, Reading::NATIVE)
    }

    /// The same for pages of a format.
    #[inline]
    pub(super) fn rates_in(&self, queries: u32, reading: Reading) -> Rates {
        self.rates_of(self.row_ns * f64::from(tile_rows(queries * self.group_size)), reading)
    }

    /// The same when plans are compared: what products cost besides says which tiles are best, and cuts no share better.
    pub(super) fn scored_rates(&self, queries: u32, reading: Reading) -> Rates {
        let rows = tile_rows(queries * self.group_size);
        let narrow = if rows <= 64 { NARROW_ROW } else { 1.0 };
        self.rates_of(self.row_ns * f64::from(rows) * self.product_factor * narrow, reading)
    }

    #[inline]
    fn rates_of(&self, compute_ns: f64, Reading { weight, decode_ns }: Reading) -> Rates {
        Rates {
            own: (self.group_ns * weight).max(compute_ns + decode_ns),
            shared: (self.shared_group_ns * weight).max(compute_ns + decode_ns),
        }
    }

    /// What pages of `format` take.
    pub(super) fn reading(&self, format: KvFormat) -> Reading {
        let elements = matches!(format, KvFormat::Native | KvFormat::Compacted);
        if elements || format.check(self.page).is_err() {
            return Reading::NATIVE;
        }
        let weight = format.page_bytes(self.page) as f64 / self.page.native_bytes() as f64;
        Reading { weight, decode_ns: self.decode_ns }
    }

    /// Native groups that cost as much as one of another format, in an item of `queries` queries.
    pub(super) fn as_native(&self, queries: u32, reading: Reading, shared: bool) -> f64 {
        if reading == Reading::NATIVE {
            return 1.0;
        }
        self.rates_in(queries, reading).of(shared) / self.rates(queries).of(shared)
    }

    /// Groups of eight tokens that `tokens` tokens of a run cost as much as.
    #[inline]
    pub(super) fn groups(&self, tokens: u32) -> u32 {
        tokens.div_ceil(CORE).next_multiple_of(self.step)
    }

    /// Merging rows of at most `slots` partial results.
    pub(super) fn merging_ns(&self, slots: u32) -> f64 {
        match slots {
            0 => 0.0,
            _ => self.merge_ns + f64::from(slots) * self.merge_slot_ns,
        }
    }

    /// The least that `groups` groups of tokens seen by `queries` queries cost, in whichever tiles.
    pub(super) fn least_ns(&self, groups: f64, queries: u32) -> f64 {
        let memory = self.group_ns.min(2.0 * self.shared_group_ns);
        groups * memory.max(self.row_ns * f64::from(queries * self.group_size))
    }

    /// Queries that fit the rows of the tile that `queries` queries take.
    pub(super) fn tile_queries(&self, queries: u32) -> u32 {
        (tile_rows(queries * self.group_size) / self.group_size).max(1)
    }

    /// Whether `queries` queries take more than the narrow tiles, whose cost is memory's alone.
    pub(super) fn is_wide(&self, queries: u32) -> bool {
        queries * self.group_size > 64
    }
}

/// Pages of elements of so many bytes.
pub(super) fn page_shape(head_dim: u32, element_bytes: u32) -> PageShape {
    let dtype = match element_bytes {
        0..=2 => DType::F16,
        _ => DType::F32,
    };
    PageShape { head_dim, dtype }
}

/// What reading pages of a format takes beside native ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    /// Their bytes over those of native ones.
    pub(super) weight: f64,
    /// Decoding a group of eight tokens.
    decode_ns: f64,
}

impl Reading {
    pub(super) const NATIVE: Self = Self { weight: 1.0, decode_ns: 0.0 };
}

/// Cost of one group of eight tokens, by who reads it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    own: f64,
    shared: f64,
}

impl Rates {
    #[inline]
    pub(super) fn of(&self, shared: bool) -> f64 {
        if shared { self.shared } else { self.own }
    }

    #[inline]
    pub(super) fn cost(&self, groups: Groups) -> f64 {
        groups.own * self.own + groups.shared * self.shared
    }
}

/// Token groups, by who reads them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Groups {
    /// Read by one row tile.
    own: f64,
    /// Read by several at about the same time.
    shared: f64,
}

impl Groups {
    #[inline]
    pub(super) fn add(&mut self, groups: f64, shared: bool) {
        if shared {
            self.shared += groups;
        } else {
            self.own += groups;
        }
    }
}

/// What a product costs at `head_dim`, over what one costs at 128.
fn product_factor(head_dim: u32) -> f64 {
    match head_dim {
        0..=64 => 1.5,
        65..=128 => 1.0,
        _ => 1.4,
    }
}

/// Rows that the tile classes make of `rows`.
fn tile_rows(rows: u32) -> u32 {
    match rows {
        0..=16 => 16,
        17..=64 => 64,
        65..=128 => 128,
        _ => rows.div_ceil(256) * 256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bound_by_memory_until_the_tile_is_wide() {
        let costs = Costs::new(&CostModel::H100, 4, 128, 2);
        let page = |queries| costs.rates(queries).of(false) * f64::from(PAGE_GROUPS);
        let by_memory = 32_768.0 / CostModel::H100.bytes_per_ns;
        assert!((page(1) - by_memory).abs() < 1e-9);
        assert_eq!(page(1), page(16));
        let by_compute = 256.0 * 64.0 * 128.0 * 4.0 / CostModel::H100.flops_per_ns;
        assert!((page(64) - by_compute).abs() < 1e-9);
        assert!((page(65) - 2.0 * by_compute).abs() < 1e-9);
        let shared = costs.rates(1).of(true) * f64::from(PAGE_GROUPS);
        assert!((shared - 32_768.0 / CostModel::H100.cache_bytes_per_ns).abs() < 1e-9);
    }
}
