//! What a plan's parts cost, so that shares can be made even.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::CORE;

use crate::cache::DType;
use crate::format::{KvFormat, PageShape};

/// What a plan costs, in nanoseconds.
///
/// | constant | H100 | what it is |
/// |---|---|---|
/// | `launch_ns` | 5,780 | a plan without work: launch, first trips to memory, last stores |
/// | `item_ns` | 2,720 | a work item: load queries, fill and drain the pipeline, scale and store |
/// | `flops_per_ns` | 4,620 | products of 65 to 128 rows, head dimension 128 |
/// | `few_rows` | 1.12 | time of a row's products in tiles of up to 64 rows, over that |
/// | `dim_64`, `dim_256` | 0.69, 0.64 | rate of products with head dimensions up to 64 and above 128, over that of 128 |
/// | `bytes_per_ns` | 127 | a share by itself, from memory or the cache |
/// | `memory_bytes_per_ns` | 22.4 | from memory, a share's part of what all read: 2,960 GB/s over 132 SMs |
/// | `cache_bytes_per_ns` | 89 | memory's and the cache's, a share's part of what all ask for: contended re-reads of narrow tiles |
/// | `partial_bytes_per_ns` | 28 | partial results, written and read |
/// | `merge_ns` | 2,250 | the merge, where there is one |
/// | `cache_bytes` | 198,000 | what the cache keeps, a share's part: half of 50 MB over 132 SMs, since an SM reads through its own half |
///
/// All but the last were fitted to 480 times on one H100: every candidate of 40 drawn trees, by itself. docs/notebook.md
/// has how, and the errors on those trees and on others. `deft-bench trees --cost NAME=VALUE` tries another.
///
/// A page is computed whole, however few tokens it holds. In an item of some rows it costs `max(bytes / bytes_per_ns,
/// rows x 64 x head_dim x 4 / flops_per_ns)`, the rows rounded up to what the kernels' tiles hold (16, 64, 128). A share
/// takes what its items, pages and partial slots cost. The costliest share, all bytes from memory at the shares' mean
/// rate, and all bytes asked for at the cache's, delay each other where they come close: the plan takes the fourth
/// root of the sum of their fourth powers, besides launch and merge.
///
/// Other GPUs have the H100's constants in the ratio of their datasheets, an SM against an SM:
///
/// | GPU | SMs | GB/s | dense 16-bit TFLOP/s | cache, MB | clock, MHz |
/// |---|---|---|---|---|---|
/// | H100 SXM | 132 | 3,350 | 989 | 50 | 1,980 |
/// | H200 SXM | 132 | 4,800 | 989 | 50 | 1,980 |
/// | A100 SXM 80 GB | 108 | 2,039 | 312 | 40 | 1,410 |
/// | L40S | 142 | 864 | 362 | 96 | 2,520 |
///
/// Memory rates go by the bandwidth, products by the TFLOP/s, rates from the cache and fixed costs by the clock.
/// Nothing has been timed on those three.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CostModel {
    /// KV bytes a share reads in a nanosecond, by itself.
    pub bytes_per_ns: f64,
    /// Floating-point operations of a share in a nanosecond: head dimension 128, more than 64 rows.
    pub flops_per_ns: f64,
    /// Time of a row's products in tiles of up to 64 rows, over that in wider ones.
    pub few_rows: f64,
    /// Rate of products with head dimensions up to 64, over that with 128.
    pub dim_64: f64,
    /// The same above 128.
    pub dim_256: f64,
    /// Fixed cost of a work item.
    pub item_ns: f64,
    /// KV bytes that are asked for in a nanosecond, a share's part of what all ask for at once.
    pub cache_bytes_per_ns: f64,
    /// Bytes of partial results that a share writes, or reads back, in a nanosecond.
    pub partial_bytes_per_ns: f64,
    /// Fixed cost of merging partial results.
    pub merge_ns: f64,
    /// KV bytes from memory in a nanosecond, a share's part of what all read at once.
    pub memory_bytes_per_ns: f64,
    /// Bytes that the cache keeps until they are read again, a share's part.
    pub cache_bytes: f64,
    /// Fixed cost of a plan.
    pub launch_ns: f64,
}

/// A GPU's datasheet: SMs, GB/s, dense 16-bit TFLOP/s, MB of L2, boost clock in MHz.
struct Datasheet {
    sms: f64,
    gb_per_s: f64,
    tflop_per_s: f64,
    cache_mb: f64,
    mhz: f64,
}

const H100_SHEET: Datasheet =
    Datasheet { sms: 132.0, gb_per_s: 3_350.0, tflop_per_s: 989.0, cache_mb: 50.0, mhz: 1_980.0 };

impl CostModel {
    /// An H100 with one thread block an SM.
    pub const H100: Self = Self {
        bytes_per_ns: 127.0,
        flops_per_ns: 4_620.0,
        few_rows: 1.12,
        dim_64: 0.69,
        dim_256: 0.64,
        item_ns: 2_720.0,
        cache_bytes_per_ns: 89.0,
        partial_bytes_per_ns: 28.0,
        merge_ns: 2_250.0,
        memory_bytes_per_ns: 22.4,
        cache_bytes: 198_000.0,
        launch_ns: 5_780.0,
    };
    /// An H200, by its datasheet.
    const H200: Self = Self::scaled(Datasheet { gb_per_s: 4_800.0, ..H100_SHEET });
    /// An A100 of 80 GB, by its datasheet.
    const A100: Self = Self::scaled(Datasheet {
        sms: 108.0,
        gb_per_s: 2_039.0,
        tflop_per_s: 312.0,
        cache_mb: 40.0,
        mhz: 1_410.0,
    });
    /// An L40S, by its datasheet.
    const L40S: Self = Self::scaled(Datasheet {
        sms: 142.0,
        gb_per_s: 864.0,
        tflop_per_s: 362.0,
        cache_mb: 96.0,
        mhz: 2_520.0,
    });
    /// One core of a CPU: a few GB/s of the shared memory bus, 8-lane FMA at half its rate.
    pub(crate) const CPU_CORE: Self = Self {
        bytes_per_ns: 8.0,
        flops_per_ns: 24.0,
        few_rows: 1.0,
        dim_64: 1.0,
        dim_256: 1.0,
        item_ns: 500.0,
        cache_bytes_per_ns: 16.0,
        partial_bytes_per_ns: 16.0,
        merge_ns: 1_000.0,
        memory_bytes_per_ns: 8.0,
        cache_bytes: 2_000_000.0,
        launch_ns: 5_000.0,
    };

    /// The model of the GPU that calls itself `name`, such as `NVIDIA H100 80GB HBM3`; the H100's if it is none
    /// of those above, since shares are even by ratios that GPUs have nearly in common.
    pub fn of_gpu(name: &str) -> Self {
        let known = [("H200", Self::H200), ("A100", Self::A100), ("L40S", Self::L40S)];
        let found = known.into_iter().find(|(part, _)| name.contains(part));
        found.map_or(Self::H100, |(_, model)| model)
    }

    const fn scaled(sheet: Datasheet) -> Self {
        let one = H100_SHEET;
        let memory = sheet.gb_per_s / sheet.sms / (one.gb_per_s / one.sms);
        let products = sheet.tflop_per_s / sheet.sms / (one.tflop_per_s / one.sms);
        let clock = sheet.mhz / one.mhz;
        Self {
            bytes_per_ns: Self::H100.bytes_per_ns * memory,
            flops_per_ns: Self::H100.flops_per_ns * products,
            few_rows: Self::H100.few_rows,
            dim_64: Self::H100.dim_64,
            dim_256: Self::H100.dim_256,
            item_ns: Self::H100.item_ns / clock,
            merge_ns: Self::H100.merge_ns / clock,
            cache_bytes_per_ns: Self::H100.cache_bytes_per_ns * clock,
            partial_bytes_per_ns: Self::H100.partial_bytes_per_ns * clock,
            memory_bytes_per_ns: Self::H100.memory_bytes_per_ns * memory,
            cache_bytes: Self::H100.cache_bytes * (sheet.cache_mb / sheet.sms)
                / (one.cache_mb / one.sms),
            launch_ns: Self::H100.launch_ns / clock,
        }
    }

    /// Every constant by its field's name.
    pub(super) const fn constants(&self) -> [(&'static str, f64); 12] {
        [
            ("bytes_per_ns", self.bytes_per_ns),
            ("flops_per_ns", self.flops_per_ns),
            ("few_rows", self.few_rows),
            ("dim_64", self.dim_64),
            ("dim_256", self.dim_256),
            ("item_ns", self.item_ns),
            ("cache_bytes_per_ns", self.cache_bytes_per_ns),
            ("partial_bytes_per_ns", self.partial_bytes_per_ns),
            ("merge_ns", self.merge_ns),
            ("memory_bytes_per_ns", self.memory_bytes_per_ns),
            ("cache_bytes", self.cache_bytes),
            ("launch_ns", self.launch_ns),
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
    /// Reading one page.
    read_ns: f64,
    /// Computing one row against one page, in tiles of more than 64 rows and of fewer.
    row_ns: f64,
    few_row_ns: f64,
    pub(super) item_ns: f64,
    /// One query's partial slot, written and read.
    pub(super) slot_ns: f64,
    pub(super) merge_ns: f64,
    /// One group of eight tokens when all shares read from memory.
    pub(super) memory_group_ns: f64,
    /// The same of all that is asked for.
    pub(super) cache_group_ns: f64,
    /// Groups of eight tokens that the cache keeps, a share's part.
    pub(super) cache_groups: f64,
    pub(super) launch_ns: f64,
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
        let page = f64::from(PAGE_GROUPS);
        let rate = match head_dim {
            0..=64 => model.dim_64,
            65..=128 => 1.0,
            _ => model.dim_256,
        };
        let row_ns = 4.0 * page * group_elements / (model.flops_per_ns * rate);
        Self {
            group_size,
            page: page_shape(head_dim, element_bytes),
            read_ns: page * group_bytes / model.bytes_per_ns,
            row_ns,
            few_row_ns: row_ns * model.few_rows,
            item_ns: model.item_ns,
            slot_ns: 2.0 * slot_bytes / model.partial_bytes_per_ns,
            merge_ns: model.merge_ns,
            memory_group_ns: group_bytes / model.memory_bytes_per_ns,
            cache_group_ns: group_bytes / model.cache_bytes_per_ns,
            cache_groups: model.cache_bytes / group_bytes,
            launch_ns: model.launch_ns,
        }
    }

    /// What a page costs in an item of `queries` queries.
    #[inline]
    pub(super) fn page_ns(&self, queries: u32) -> f64 {
        self.page_ns_in(queries, 1.0)
    }

    /// The same for pages of `weight` times the bytes of native ones.
    #[inline]
    pub(super) fn page_ns_in(&self, queries: u32, weight: f64) -> f64 {
        let rows = tile_rows(queries * self.group_size);
        let row_ns = if rows <= 64 { self.few_row_ns } else { self.row_ns };
        (self.read_ns * weight).max(row_ns * f64::from(rows))
    }

    /// Bytes of a page of `format` over those of a native one.
    pub(super) fn weight(&self, format: KvFormat) -> f64 {
        if format == KvFormat::Native || format.check(self.page).is_err() {
            return 1.0;
        }
        format.page_bytes(self.page) as f64 / self.page.native_bytes() as f64
    }

    /// The least that `pages` pages seen by `queries` queries cost, in whichever tiles.
    pub(super) fn least_ns(&self, pages: f64, queries: u32) -> f64 {
        let row_ns = self.row_ns.min(self.few_row_ns);
        pages * self.read_ns.max(row_ns * f64::from(queries * self.group_size))
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
    fn gpus_are_known_by_their_names_and_scaled_an_sm_against_an_sm() {
        assert_eq!(CostModel::of_gpu("NVIDIA H100 80GB HBM3"), CostModel::H100);
        assert_eq!(CostModel::of_gpu("NVIDIA H200"), CostModel::H200);
        assert_eq!(CostModel::of_gpu("NVIDIA A100-SXM4-80GB"), CostModel::A100);
        assert_eq!(CostModel::of_gpu("NVIDIA L40S"), CostModel::L40S);
        assert_eq!(CostModel::of_gpu("of years to come"), CostModel::H100);
        assert_eq!(CostModel::H200.flops_per_ns, CostModel::H100.flops_per_ns);
        // 4.8 TB/s against 3.35, both over 132 SMs.
        let faster = CostModel::H200.bytes_per_ns / CostModel::H100.bytes_per_ns;
        assert!((faster - 4.8 / 3.35).abs() < 1e-9);
        // 312 TFLOP/s over 108 SMs against 989 over 132.
        let slower = CostModel::A100.flops_per_ns / CostModel::H100.flops_per_ns;
        assert!((slower - 312.0 / 108.0 / (989.0 / 132.0)).abs() < 1e-9);
        let larger = CostModel::L40S.cache_bytes / CostModel::H100.cache_bytes;
        assert!((larger - 96.0 / 142.0 / (50.0 / 132.0)).abs() < 1e-9);
    }

    #[test]
    fn a_page_is_bound_by_reading_until_the_tile_is_wide() {
        let model = CostModel::H100;
        let costs = Costs::new(&model, 4, 128, 2);
        let read = 32_768.0 / model.bytes_per_ns;
        assert!((costs.page_ns(1) - read).abs() < 1e-9);
        assert_eq!(costs.page_ns(1), costs.page_ns(4));
        let computed = 128.0 * 64.0 * 128.0 * 4.0 / model.flops_per_ns;
        assert!((costs.page_ns(32) - computed).abs() < 1e-9);
        assert!((costs.page_ns(16) - model.few_rows * computed / 2.0).abs() < 1e-9);
        let wide = Costs::new(&model, 4, 256, 2);
        assert!((wide.page_ns(32) - 2.0 * computed / model.dim_256).abs() < 1e-9);
    }
}
