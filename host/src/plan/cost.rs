//! What a plan's parts cost, so that shares can be made even.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::CORE;

/// Cost of one share's work, in nanoseconds of the thread block that runs it.
///
/// | constant | H100 | where from |
/// |---|---|---|
/// | `bytes_per_ns` | 42 | fitted: best balance between nodes that one tile reads and nodes that several do |
/// | `flops_per_ns` | 4,400 | estimated: `spec64_ctx32k` with row tiles of 64 and of 128, less an assumed 12 us of fixed cost |
/// | `item_ns` | 1,500 | fitted, of little weight: load queries, drain the pipeline, scale and store |
/// | `cache_bytes_per_ns` | 66 | estimated from the same times: what a share asked for; the cache may give more |
/// | `partial_bytes_per_ns` | 30 | fitted, between 21.7 (`spec64_ctx4k`) and what long contexts want |
///
/// Refitted by `deft-bench trees --cost bytes_per_ns=42 --cost partial_bytes_per_ns=30 ...`; what was tried is in
/// docs/performance.md. An SM alone can read faster than its 1/132 of 3,088 GB/s, and does so beside others that
/// read from the cache: hence 42 and not 23.4.
///
/// A page of `n` tokens costs `max(bytes / bytes_per_ns, rows x n x head_dim x 4 / flops_per_ns)`, the
/// rows rounded up to what the kernels' tiles hold (16, 64, 128, 256) and the tokens to whole groups of
/// eight. Pages that several row tiles read at about the same time cost `bytes / cache_bytes_per_ns`
/// instead. A partial slot costs its bytes once written and once read.
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
}

impl CostModel {
    /// An H100 with one thread block an SM.
    pub const H100: Self = Self {
        bytes_per_ns: 42.0,
        flops_per_ns: 4_400.0,
        item_ns: 1_500.0,
        cache_bytes_per_ns: 66.0,
        partial_bytes_per_ns: 30.0,
    };
    /// One core of a CPU: a few GB/s of the shared memory bus, 8-lane FMA at half its rate.
    pub const CPU_CORE: Self = Self {
        bytes_per_ns: 8.0,
        flops_per_ns: 24.0,
        item_ns: 500.0,
        cache_bytes_per_ns: 16.0,
        partial_bytes_per_ns: 16.0,
    };
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
    /// Reading one group of eight tokens.
    group_ns: f64,
    /// The same, when other shares read it as well.
    shared_group_ns: f64,
    /// Computing one row against one group of eight tokens.
    row_ns: f64,
    pub(super) item_ns: f64,
    /// One query's partial slot, written and read.
    pub(super) slot_ns: f64,
}

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
            group_ns: group_bytes / model.bytes_per_ns,
            shared_group_ns: group_bytes / model.cache_bytes_per_ns.max(model.bytes_per_ns),
            row_ns: 4.0 * group_elements / model.flops_per_ns,
            item_ns: model.item_ns,
            slot_ns: 2.0 * slot_bytes / model.partial_bytes_per_ns,
        }
    }

    /// What token groups cost in an item of `queries` queries.
    #[inline]
    pub(super) fn rates(&self, queries: u32) -> Rates {
        let compute_ns = self.row_ns * f64::from(tile_rows(queries * self.group_size));
        Rates {
            own: self.group_ns.max(compute_ns),
            shared: self.shared_group_ns.max(compute_ns),
        }
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
