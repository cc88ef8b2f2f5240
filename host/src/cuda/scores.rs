//! Scores of tokens on the device.

use kernels_gpu::abi::{PAGE_TOKENS, SCORE_LAST, SCORE_MAX, SCORE_SUM};
use kernels_gpu::ptx::{self, Arguments as _};

use super::compacted::plane_len;
use super::launch::Launch;
use super::{
    CudaCache, CudaDevice, CudaError, CudaPlan, DeviceBuffer, DevicePtr, Kernel, RawStream, Stream,
};
use crate::attention::{AttentionParams, Reduce};
use crate::cache::CacheShape;
use crate::format::KvFormat;

/// Words of a cell.
const CELL: usize = PAGE_TOKENS as usize;

/// Most cells between two that are read in one copy: as long as the copy of a cell takes, many more could be copied.
const GAP: u32 = 64;

/// Device pointers of one score pass.
#[derive(Clone, Copy, Debug)]
pub struct ScoreBuffers {
    /// `[queries, q_heads, head_dim]`, 16 bits.
    pub q: DevicePtr,
    /// `[queries, q_heads]`, f32, natural logarithm: what attention gave.
    pub lse: DevicePtr,
    /// `[queries]` u32: tokens that each query sees; 0 leaves it out.
    pub visible: DevicePtr,
}

/// The planes of scores.
#[derive(Debug, Default)]
pub(super) struct Scores {
    /// `[cell][64]` of each layer that has some.
    planes: Vec<Option<DeviceBuffer<u32>>>,
    kernel: Option<Kernel>,
}

impl Scores {
    fn plane(&self, layer: u32) -> Option<&DeviceBuffer<u32>> {
        self.planes.get(layer as usize)?.as_ref()
    }

    fn make(
        &mut self,
        device: &CudaDevice,
        shape: &CacheShape,
        layer: u32,
        stream: &Stream,
    ) -> Result<&DeviceBuffer<u32>, CudaError> {
        self.planes.resize_with(shape.layers as usize, || None);
        let place = &mut self.planes[layer as usize];
        if place.is_none() {
            let plane = DeviceBuffer::uninitialized(device, "scores", plane_len(shape))?;
            plane.fill_bytes(0, stream)?;
            *place = Some(plane);
        }
        Ok(place.as_ref().expect("it was just made"))
    }
}

impl CudaCache {
    /// Makes a layer's scores, zeros, where there are none, and loads the kernel that writes them.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::OutOfMemory`], [`CudaError::Driver`], those of [`CudaDevice::kernel`].
    pub fn make_scores(&mut self, layer: u32, stream: &Stream) -> Result<(), CudaError> {
        let (shape, device) = (*self.shape(), self.device().clone());
        shape.check_layer(layer)?;
        let scores = &mut self.scores;
        if scores.kernel.is_none() {
            let name = format!("score_{}_d{}", shape.dtype, shape.head_dim);
            scores.kernel = Some(device.kernel(&name, ptx::Score::BYTES)?);
        }
        scores.make(&device, &shape, layer, stream).map(drop)
    }

    /// Enqueues a score pass of one layer, whose scores [`CudaCache::make_scores`] has made: one launch, in which native pages
    /// go with those of compacted nodes.
    ///
    /// # Safety
    /// As [`CudaCache::attend`], with the arrays that `buffers` names.
    ///
    /// # Errors
    /// Those of [`CudaCache::attend`]; [`CudaError::Argument`] without scores.
    pub unsafe fn score(
        &self,
        layer: u32,
        plan: &CudaPlan,
        buffers: &ScoreBuffers,
        reduce: Reduce,
        params: &AttentionParams,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let shape = self.shape();
        plan.check_for(self.device(), shape)?;
        let (Some(kernel), Some(plane)) = (&self.scores.kernel, self.scores.plane(layer)) else {
            let (value, expected) = (layer.to_string(), "a layer with scores".to_owned());
            return Err(CudaError::Argument { argument: "layer", value, expected });
        };
        let at = self.layer_pointers(layer)?;
        let (images, capacity) = (&plan.images, plan.capacity());
        let score = ptx::Score {
            q: buffers.q.0,
            pool: at.pool.0,
            cells: 0,
            biases: 0,
            programs: images.words.pointer().0,
            masks: images.masks.pointer().0,
            lengths: at.lengths.0,
            lse: buffers.lse.0,
            visible: buffers.visible.0,
            scores: plane.pointer().0,
            stride: capacity.stride_words,
            cell_stride: 0,
            kv_heads: shape.kv_heads,
            group: plan.group_size,
            scale_log2: params.scale * std::f32::consts::LOG2_E,
            soft_cap: params.soft_cap.unwrap_or(0.0),
            reduce: match reduce {
                Reduce::Last => SCORE_LAST,
                Reduce::Sum => SCORE_SUM,
                Reduce::Max => SCORE_MAX,
            },
        };
        let rows = self.compacted.at(shape, layer);
        for (of, format) in capacity.formats.iter().enumerate() {
            let programs = images.words.at(of * capacity.words_of_one()).0;
            let arguments = match *format {
                KvFormat::Native => ptx::Score { programs, ..score },
                KvFormat::Compacted => ptx::Score {
                    programs,
                    cells: rows.cells.0,
                    biases: rows.biases.0,
                    cell_stride: rows.cell_stride,
                    ..score
                },
                format => {
                    let expected = "one for scores, without pages that are decoded".to_owned();
                    let value = format!("one with pages in {format}");
                    return Err(CudaError::Argument { argument: "plan", value, expected });
                }
            };
            let grid = [capacity.shares, shape.kv_heads, 1];
            let launch = Launch { grid, overlaps_predecessor: false };
            // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the caller vouches for buffers
            // and stream, the rest is ours; the room has programs for each of its formats.
            unsafe { kernel.launch(launch, arguments, stream) }?;
        }
        Ok(())
    }

    /// Reads the scores of cells of a layer, `[cells, 64]`; zeros where there are none.
    pub(super) fn read_scores(
        &self,
        layer: u32,
        cells: &[u32],
        scores: &mut [u32],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Some(plane) = self.scores.plane(layer) else {
            scores.fill(0);
            return Ok(());
        };
        let mut order: Vec<(u32, usize)> = cells.iter().copied().zip(0..).collect();
        order.sort_unstable();
        for run in order.chunk_by(|before, after| after.0 - before.0 <= GAP) {
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            let mut held = vec![0; (last - first + 1) as usize * CELL];
            plane.read(first as usize * CELL, &mut held, stream)?;
            for &(cell, index) in run {
                let held = &held[(cell - first) as usize * CELL..][..CELL];
                scores[index * CELL..][..CELL].copy_from_slice(held);
            }
        }
        Ok(())
    }

    /// Enqueues the scores of cells of a layer, `[cells, 64]`.
    pub(super) fn write_scores(
        &mut self,
        layer: u32,
        cells: &[u32],
        scores: &[u32],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (shape, device) = (*self.shape(), self.device().clone());
        let plane = self.scores.make(&device, &shape, layer, stream)?;
        upload_cells(plane, cells, scores, stream)
    }

    /// Enqueues zeros for cells of all layers that have scores.
    pub(super) fn clear_scores(&self, cells: &[u32], stream: &Stream) -> Result<(), CudaError> {
        let zeros = vec![0; cells.len() * CELL];
        let mut planes = self.scores.planes.iter().flatten();
        planes.try_for_each(|plane| upload_cells(plane, cells, &zeros, stream))
    }
}

/// Enqueues `scores: [cells, 64]`, neighbours in one copy.
fn upload_cells(
    plane: &DeviceBuffer<u32>,
    cells: &[u32],
    mut scores: &[u32],
    stream: &Stream,
) -> Result<(), CudaError> {
    for run in cells.chunk_by(|before, after| before + 1 == *after) {
        let (here, rest) = scores.split_at(run.len() * CELL);
        plane.upload(run[0] as usize * CELL, here, stream)?;
        scores = rest;
    }
    Ok(())
}
