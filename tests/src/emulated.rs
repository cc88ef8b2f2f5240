//! The GPU kernels as a backend: their own source, on the emulator.

mod attend;
mod cache;
mod rows;
mod score;

pub use attend::attend_in_place;

use deft::KvFormat;
use deft::attention::staged::PageMemory;
use deft::attention::{
    Attend, Backend, BackendError, Compact, Counters, PagedTokens, Rotation, Score, check_append,
    check_attend, check_cells, check_compact, check_export, check_import, check_moves, check_score,
};
use deft::cache::{CacheShape, DType, Elements, ElementsMut, KvElement, PageId};
use deft::plan::{Grouping, LaunchPages, Plan, PlanConfig};
use device::emulator::{Launch, Report};
use kernels_gpu::Arch;
use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS, TokenMove};
use kernels_gpu::attention::tile::max_rows;

use crate::problem::Problem;
use crate::transfers::Inspect;

/// Calls the instance of a generic method for the cache's head dimension, and element type where there is an `E`.
macro_rules! instance {
    ($self:ident.$method:ident::<E, D>($($argument:expr),*)) => {
        match $self.shape.dtype {
            deft::cache::DType::Bf16 => instance!(@ $self.$method, [device::Bf16,], ($($argument),*)),
            _ => instance!(@ $self.$method, [device::F16,], ($($argument),*)),
        }
    };
    ($self:ident.$method:ident::<D>($($argument:expr),*)) => {
        instance!(@ $self.$method, [], ($($argument),*))
    };
    (@ $self:ident.$method:ident, [$($element:ty,)?], ($($argument:expr),*)) => {
        match $self.shape.head_dim {
            64 => $self.$method::<$($element,)? 64>($($argument),*),
            128 => $self.$method::<$($element,)? 128>($($argument),*),
            _ => $self.$method::<$($element,)? 256>($($argument),*),
        }
    };
}
use instance;

/// A cache of 16-bit elements whose every operation is a launch on the emulator.
#[derive(Debug)]
pub struct Emulated {
    shape: CacheShape,
    /// `[layers][pages][kv_heads][page elements]`.
    pool: Vec<u16>,
    scores: score::Planes,
    /// `[cell][64]` of each layer that has some.
    biases: Vec<Vec<f32>>,
    arch: Arch,
    seed: u64,
}

impl Emulated {
    /// A cache of zeros, whose attention is Hopper's; `seed` decides what a schedule may.
    ///
    /// # Panics
    /// If the elements do not have 16 bits, or the head dimension is none that the kernels have.
    pub fn new(shape: CacheShape, seed: u64) -> Self {
        assert_eq!(shape.dtype.bytes(), 2, "the kernels have 16-bit elements");
        assert!(matches!(shape.head_dim, 64 | 128 | 256));
        let elements = shape.layers as usize * shape.plane_elements() as usize;
        Self {
            shape,
            pool: vec![0; elements],
            scores: Vec::new(),
            biases: Vec::new(),
            arch: Arch::Sm90a,
            seed,
        }
    }

    /// The same with the attention kernels of `arch`.
    #[must_use]
    pub fn with_kernels(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    fn plane(&self, layer: u32) -> std::ops::Range<usize> {
        let elements = self.shape.plane_elements() as usize;
        layer as usize * elements..(layer as usize + 1) * elements
    }

    fn launch(&self, blocks: [u32; 3], threads: u32) -> Launch {
        Launch::new(blocks, threads).seed(self.seed)
    }
}

/// The element type in which scores and attention over anything but native pages are emulated at a head dimension.
///
/// Each instance of a kernel takes seconds to compile. Native pages have all of them, and with these every format, score
/// and way of reading in place meets both element types and every head dimension.
pub fn dtype_of_variants(head_dim: u32) -> DType {
    if head_dim == 128 { DType::Bf16 } else { DType::F16 }
}

/// 16-bit elements in the host's memory.
fn words<'a>(rows: Elements<'a>) -> &'a [u16] {
    bytemuck::cast_slice(rows.bytes().expect("rows are on the host"))
}

/// The same to be written to.
fn words_mut<'a>(rows: ElementsMut<'a>) -> &'a mut [u16] {
    bytemuck::cast_slice_mut(rows.into_bytes().expect("rows are on the host"))
}

/// The plan's programs of one launch, `[shares][stride]` words.
fn programs(plan: &Plan, pages: LaunchPages) -> Vec<u32> {
    let mut words = vec![0; plan.words().len()];
    for share in 0..plan.shares() {
        let program = plan.share(share).of_launch(pages);
        words[(share * plan.stride()) as usize..][..program.len()].copy_from_slice(&program);
    }
    words
}

fn device_error(report: Box<Report>) -> BackendError {
    BackendError::Device(report)
}

/// Runs `plan` over `problem` by every architecture's kernels under the schedule of `seed`, and compares.
///
/// # Panics
/// If a kernel makes a mistake or gives something else.
pub fn check<T: KvElement>(problem: &Problem<T>, plan: &Plan, seed: u64) {
    for arch in Arch::ALL {
        let mut backend = Emulated::new(problem.shape(1), seed).with_kernels(arch);
        problem.store(&mut backend, 0);
        let context = format!(
            "{}, seed {seed}, {:?}, {} shares, {} {:?}",
            arch.name(),
            plan.grouping(),
            plan.shares(),
            T::DTYPE,
            problem.inputs.heads
        );
        problem.check(&mut backend, 0, plan, &context);
    }
}

impl Inspect for Emulated {
    fn pool(&self) -> Vec<u16> {
        self.pool.clone()
    }
}

impl PageMemory for Emulated {
    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn read(&self, layer: u32, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        let plane: &[u8] = bytemuck::cast_slice(&self.pool[self.plane(layer)]);
        bytes.copy_from_slice(&plane[offset..offset + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, layer: u32, offset: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let plane = self.plane(layer);
        let plane: &mut [u8] = bytemuck::cast_slice_mut(&mut self.pool[plane]);
        plane[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Backend for Emulated {
    fn max_group_size(&self) -> u32 {
        max_rows(self.shape.head_dim)
    }

    fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        let head_dim = self.shape.head_dim;
        let mut config = PlanConfig::new(grouping, group_size, head_dim, self.shares());
        config.max_rows = max_rows(head_dim);
        config
    }

    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn name(&self) -> String {
        format!("GPU kernels for {}, emulated", self.arch.name())
    }

    fn shares(&self) -> u32 {
        4
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        check_append(&self.shape, layer, targets, counters, [k, v], None)?;
        instance!(self.append_d::<E, D>(layer, targets, counters, [k, v].map(words), None))
            .map_err(device_error)
    }

    fn append_rotated(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
        rotation: Rotation<'_>,
    ) -> Result<(), BackendError> {
        let (rows, rotation) = ([k, v], Some(rotation));
        check_append(&self.shape, layer, targets, counters, rows, rotation)?;
        instance!(self.append_d::<E, D>(layer, targets, counters, rows.map(words), rotation))
            .map_err(device_error)
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(&self.shape, moves)?;
        let share = (moves.len() as u32).max(1);
        instance!(self.copy_d::<D>(moves, share)).map_err(device_error)
    }

    fn copy_apart(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(&self.shape, moves)?;
        instance!(self.copy_d::<D>(moves, 5)).map_err(device_error)
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        check_import(&self.shape, paged, foreign)?;
        if paged.places.is_empty() {
            return Ok(());
        }
        self.import_strided(paged, paged.table.page_size, foreign.map(words)).map_err(device_error)
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        check_export(&self.shape, paged, &foreign)?;
        if paged.places.is_empty() {
            return Ok(());
        }
        self.export_onto(paged, foreign.map(words_mut)).map_err(device_error)
    }

    fn check_format(&self, format: KvFormat) -> Result<(), BackendError> {
        format.check(self.shape.page()).map_err(BackendError::FormatShape)?;
        match format.kernel(self.shape.page()) {
            None if format != KvFormat::Native => {
                Err(BackendError::Format { format, backend: self.name() })
            }
            _ => Ok(()),
        }
    }

    fn page_memory(&mut self) -> Option<&mut dyn PageMemory> {
        Some(self)
    }

    fn score_plan_config(&self, group_size: u32) -> Option<PlanConfig> {
        Some(self.plan_config(Grouping::NodeChunk, group_size))
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(&self.shape, &call)?;
        self.attend_any(call).map_err(device_error)
    }

    fn compact(&mut self, call: Compact<'_>) -> Result<(), BackendError> {
        check_compact(&self.shape, &call)?;
        instance!(self.compact_d::<E, D>(&call)).map_err(device_error)
    }

    fn score(&mut self, call: Score<'_>) -> Result<(), BackendError> {
        check_score(&self.shape, &call)?;
        self.score_any(call).map_err(device_error)
    }

    fn clear_scores(&mut self, pages: &[PageId]) -> Result<(), BackendError> {
        let cells = pages.iter().flat_map(|page| {
            let first = page * self.shape.kv_heads;
            first..first + self.shape.kv_heads
        });
        let cells: Vec<u32> = cells.collect();
        let zeros = vec![0; cells.len() * PAGE_TOKENS as usize];
        (0..self.shape.layers).try_for_each(|layer| self.write_scores(layer, &cells, &zeros))
    }

    fn read_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &mut [u32],
    ) -> Result<(), BackendError> {
        check_cells(&self.shape, layer, cells, scores.len())?;
        let plane = self.scores_of(layer);
        for (scores, place) in scores.chunks_exact_mut(64).zip(cells.iter().map(cell_range)) {
            scores.copy_from_slice(&plane[place]);
        }
        Ok(())
    }

    fn write_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &[u32],
    ) -> Result<(), BackendError> {
        check_cells(&self.shape, layer, cells, scores.len())?;
        let plane = self.scores_of(layer);
        for (scores, place) in scores.chunks_exact(64).zip(cells.iter().map(cell_range)) {
            plane[place].copy_from_slice(scores);
        }
        Ok(())
    }
}

/// Where a cell's rows lie in a plane.
fn cell_range(cell: &u32) -> std::ops::Range<usize> {
    let first = *cell as usize * PAGE_TOKENS as usize;
    first..first + PAGE_TOKENS as usize
}
