//! Attention on the CPU.
//!
//! The same plan as a GPU's: every `(KV head, share)` is one task of rayon's, its work items run one
//! after the other, each leaving a partial result; then every query's partial results are merged in the
//! plan's order, so the same plan gives the same bits on any number of threads. Arithmetic is f32; a
//! page is widened once for all rows that see it.

mod compact;
mod elastic;
pub(super) mod formats;
mod in_place;
mod item;
mod merge;
mod non_finite;
mod residue;
mod score;
mod simd;
mod tile;
mod workspace;

use std::ops::Range;

use half::{bf16, f16};
use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS, TokenMove};
use pulp::Arch;

pub(super) use self::compact::unpack;
pub use self::in_place::InPlace;
use self::item::{Call, Source};
use self::merge::MAX_HEAD_DIM;
use self::workspace::Workspace;
use super::check::{
    check_append, check_attend, check_compact, check_moves, check_pages, check_plan, on_host,
    resolve,
};
use super::{
    Attend, Backend, BackendError, Channels, Compact, Counters, ElasticMemory, PagedTokens, Score,
    check_cells, check_export, check_import, check_score,
};
use crate::cache::{
    CacheShape, DType, Elements, ElementsMut, HostPages, KvElement, PageId, ShapeError,
};
use crate::format::KvFormat;
use crate::plan::{Candidates, CostModel, Grouping, PlanConfig};

/// Tasks of a plan, unless its configuration says otherwise: enough for the last task of one thread not to keep
/// the others waiting, on up to 8 threads. Not as many as there are threads, since results depend on it.
const TASKS: u32 = 32;

const CHECKED: &str = "arguments were checked";

/// A cache in the host's memory and attention over it.
#[derive(Debug)]
struct CpuBackend<T> {
    pages: HostPages<T>,
    arch: Arch,
    workspace: Workspace,
    scores: score::Planes,
}

/// A zeroed cache of `shape`.
///
/// # Errors
/// [`ShapeError`], naming the dimension.
pub fn new(shape: CacheShape) -> Result<Box<dyn Backend>, ShapeError> {
    Ok(match shape.dtype {
        DType::F16 => Box::new(CpuBackend::<f16>::of(HostPages::new(shape)?)),
        DType::Bf16 => Box::new(CpuBackend::<bf16>::of(HostPages::new(shape)?)),
        DType::F32 => Box::new(CpuBackend::<f32>::of(HostPages::new(shape)?)),
    })
}

/// As [`new`], of a cache whose pages have memory only where the system was given reason: it is an
/// [`ElasticMemory`] with extents of 16 pages.
///
/// # Errors
/// [`ShapeError`], naming the dimension; `pages` is a multiple of 16.
pub fn new_elastic(shape: CacheShape) -> Result<Box<dyn Backend>, ShapeError> {
    Ok(match shape.dtype {
        DType::F16 => Box::new(CpuBackend::<f16>::of(HostPages::elastic(shape)?)),
        DType::Bf16 => Box::new(CpuBackend::<bf16>::of(HostPages::elastic(shape)?)),
        DType::F32 => Box::new(CpuBackend::<f32>::of(HostPages::elastic(shape)?)),
    })
}

impl<T: KvElement> CpuBackend<T> {
    fn of(pages: HostPages<T>) -> Self {
        Self {
            pages,
            arch: Arch::new(),
            workspace: Workspace::default(),
            scores: score::Planes::default(),
        }
    }
}

impl<T: KvElement> Backend for CpuBackend<T> {
    fn shape(&self) -> &CacheShape {
        self.pages.shape()
    }

    fn name(&self) -> String {
        let threads = rayon::current_num_threads();
        // `V3(V3 { .. })`: pulp's names for the levels of x86-64.
        let arch = format!("{:?}", self.arch);
        let simd = match arch.split(['(', ' ']).next() {
            Some("V3") => "AVX2",
            Some("V4") => "AVX-512",
            Some(other) => other,
            None => "scalar",
        };
        format!("CPU ({simd}, {threads} threads)")
    }

    fn shares(&self) -> u32 {
        shares(self.shape().kv_heads)
    }

    fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        let CacheShape { kv_heads, head_dim, dtype, .. } = *self.shape();
        plan_config(grouping, [group_size * kv_heads, kv_heads, head_dim], dtype)
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        check_append(self.shape(), layer, targets, counters, [k, v], None)?;
        let row = self.shape().row_elements();
        let k = on_host("k", k.typed::<T>())?.chunks_exact(row);
        let v = on_host("v", v.typed::<T>())?.chunks_exact(row);
        for ((&target, k), v) in targets.iter().zip(k).zip(v) {
            let place = resolve(target, counters).expect(CHECKED);
            self.pages.write(layer, place, k, v);
        }
        Ok(())
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(self.shape(), moves)?;
        self.pages.copy(moves);
        Ok(())
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        check_import(self.shape(), paged, foreign)?;
        let [k, v] = foreign;
        let (k, v) = (on_host("k", k.typed())?, on_host("v", v.typed())?);
        self.pages.import(paged.layer, paged.places, &paged.table, k, v);
        Ok(())
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        check_export(self.shape(), paged, &foreign)?;
        let [k, v] = foreign;
        let (k, v) = (on_host("k", k.into_typed())?, on_host("v", v.into_typed())?);
        self.pages.export(paged.layer, paged.places, &paged.table, k, v);
        Ok(())
    }

    fn elastic(&mut self) -> Option<&mut dyn ElasticMemory> {
        self.pages.is_elastic().then_some(&mut self.pages)
    }

    fn check_format(&self, format: KvFormat) -> Result<(), BackendError> {
        format.check(self.shape().page()).map_err(BackendError::FormatShape)
    }

    fn encode(
        &mut self,
        format: KvFormat,
        from: &[PageId],
        to: &[PageId],
        channels: Channels<'_>,
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        formats::encode(&mut self.pages, format, from, to, channels)
    }

    fn decode(
        &mut self,
        format: KvFormat,
        from: &[PageId],
        to: &[PageId],
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        formats::decode(&mut self.pages, format, from, to);
        Ok(())
    }

    fn has_residues(&self) -> bool {
        true
    }

    fn read_cells(
        &mut self,
        layer: u32,
        cells: &[u32],
        rows: [&mut [f32]; 2],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, cells.len() * PAGE_TOKENS as usize)?;
        compact::read_cells(&self.pages, layer, cells, rows);
        Ok(())
    }

    fn compact(&mut self, call: Compact<'_>) -> Result<(), BackendError> {
        check_compact(self.shape(), &call)?;
        compact::compact(&mut self.pages, &call)
    }

    fn export_part(
        &mut self,
        format: KvFormat,
        tokens: Range<usize>,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        let [k, v] = foreign;
        let (k, v) = (on_host("k", k.into_typed())?, on_host("v", v.into_typed())?);
        formats::export(&self.pages, format, tokens, paged, [k, v]);
        Ok(())
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(self.shape(), &call)?;
        check_plan(self.shape(), call.plan, call.counters)?;
        let out = on_host("out", call.out.into_typed::<T>())?;
        let lse = call.lse.map(|lse| on_host("lse", lse.into_typed())).transpose()?;
        let call = Call {
            arch: self.arch,
            source: Source::Own(&self.pages, call.layer),
            kv_heads: self.shape().kv_heads,
            head_dim: self.shape().head_dim,
            plan: call.plan,
            lengths: call.counters.lengths,
            directory: call.counters.directory,
            residues: call.counters.residues,
            q: on_host("q", call.q.typed())?,
            params: call.params,
        };
        self.workspace.run(&call, out, lse);
        Ok(())
    }

    fn score(&mut self, call: Score<'_>) -> Result<(), BackendError> {
        check_score(self.shape(), &call)?;
        check_plan(self.shape(), call.plan, call.counters)?;
        let pass = score::Pass {
            call: Call {
                arch: self.arch,
                source: Source::Own(&self.pages, call.layer),
                kv_heads: self.shape().kv_heads,
                head_dim: self.shape().head_dim,
                plan: call.plan,
                lengths: call.counters.lengths,
                directory: call.counters.directory,
                residues: None,
                q: on_host("q", call.q.typed())?,
                params: call.params,
            },
            lse: on_host("lse", call.lse.typed())?,
            visible: call.visible,
            reduce: call.reduce,
        };
        pass.run(self.scores.layer(&self.pages, call.layer));
        Ok(())
    }

    fn clear_scores(&mut self, pages: &[PageId]) -> Result<(), BackendError> {
        check_pages(self.shape(), "pages", pages)?;
        self.scores.clear(pages, self.pages.shape().kv_heads);
        Ok(())
    }

    fn read_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &mut [u32],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, scores.len())?;
        self.scores.read(layer, cells, scores);
        Ok(())
    }

    fn write_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &[u32],
    ) -> Result<(), BackendError> {
        check_cells(self.shape(), layer, cells, scores.len())?;
        let plane = self.scores.layer(&self.pages, layer);
        for (&cell, scores) in cells.iter().zip(scores.as_chunks().0) {
            plane[cell as usize] = *scores;
        }
        Ok(())
    }
}

/// Programs a KV head that keep threads busy.
fn shares(kv_heads: u32) -> u32 {
    TASKS.div_ceil(kv_heads.max(1))
}

/// How to plan for the CPU's threads: query heads, KV heads, head dimension.
fn plan_config(grouping: Grouping, heads: [u32; 3], dtype: DType) -> PlanConfig {
    let [q_heads, kv_heads, head_dim] = heads;
    let group_size = q_heads / kv_heads.max(1);
    let mut config = PlanConfig::new(grouping, group_size, head_dim, shares(kv_heads));
    config.element_bytes = dtype.bytes() as u32;
    config.cost = CostModel::CPU_CORE;
    config.candidates = Candidates::Even;
    config
}
