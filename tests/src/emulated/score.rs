//! The score pass, a launch for each format that has scores.

use deft::KvFormat;
use deft::attention::{Reduce, Score};
use deft::cache::CacheShape;
use device::emulator::Memory;
use device::emulator::Report;
use device::{Bf16, Element, F16};
use kernels_gpu::Arch;
use kernels_gpu::abi::{PAGE_TOKENS, SCORE_LAST, SCORE_MAX, SCORE_SUM};
use kernels_gpu::attention::score;
use kernels_gpu::attention::tile;

use super::rows::Directory;
use super::{Emulated, words};

/// A plane for each layer, `[cell][64]`; empty before the first score.
pub(super) type Planes = Vec<Vec<u32>>;

impl Emulated {
    /// A layer's scores.
    pub(super) fn scores_of(&mut self, layer: u32) -> &mut Vec<u32> {
        let CacheShape { layers, pages, kv_heads, .. } = self.shape;
        self.scores.resize(layers as usize, Vec::new());
        let plane = &mut self.scores[layer as usize];
        plane.resize((pages * kv_heads * PAGE_TOKENS) as usize, 0);
        plane
    }

    pub(super) fn score_any(&mut self, call: Score<'_>) -> Result<(), Box<Report>> {
        let dtype = super::dtype_of_variants(self.shape.head_dim);
        assert!(self.shape.dtype == dtype, "emulated in {dtype} only");
        match self.shape.head_dim {
            64 => self.score_d::<F16, 64, 4>(call),
            128 => self.score_d::<Bf16, 128, 8>(call),
            _ => self.score_d::<F16, 256, 16>(call),
        }
    }

    fn score_d<E: Element, const D: usize, const KS: usize>(
        &mut self,
        call: Score<'_>,
    ) -> Result<(), Box<Report>> {
        let (plan, kv_heads) = (call.plan, self.shape.kv_heads);
        let before = self.scores_of(call.layer).clone();
        let mut memory = Memory::new();
        let q = memory.constant("q", words(call.q));
        let pool = memory.constant("pool", &self.pool[self.plane(call.layer)]);
        let masks = memory.constant("masks", plan.masks());
        let lengths = memory.constant("lengths", call.counters.lengths);
        let lse = call.lse.bytes().expect("rows are on the host");
        let lse = memory.constant::<f32>("lse", bytemuck::cast_slice(lse));
        let visible = memory.constant("visible", call.visible);
        let scores = memory.buffer("scores", &before);
        let directory =
            Directory::new(&mut memory, &self.compacted_rows(call.layer, call.counters));
        let arch = self.arch;
        for &pages in plan.launches() {
            let programs = memory.constant("programs", &super::programs(plan, pages));
            let compacted = pages.format == KvFormat::Compacted;
            assert!(compacted || pages.format == KvFormat::Native, "a plan of attention");
            let launch = self
                .launch([plan.shares(), kv_heads, 1], tile::score::threads(self.arch))
                .shared_bytes(tile::score::shared_bytes::<D>(self.arch))
                .poison_matrix_reads();
            launch.run(&mut memory, || {
                let arguments = score::Score {
                    q: q.as_ptr(),
                    pool: pool.as_ptr(),
                    cells: if compacted { directory.cells() } else { std::ptr::null() },
                    biases: directory.biases(),
                    programs: programs.as_ptr(),
                    masks: masks.as_ptr(),
                    lengths: lengths.as_ptr(),
                    lse: lse.as_ptr(),
                    visible: visible.as_ptr(),
                    scores: scores.as_mut_ptr(),
                    stride: plan.stride(),
                    cell_stride: directory.stride,
                    kv_heads,
                    group: plan.group_size(),
                    scale_log2: call.params.scale * std::f32::consts::LOG2_E,
                    soft_cap: call.params.soft_cap.unwrap_or(0.0),
                    reduce: match call.reduce {
                        Reduce::Last => SCORE_LAST,
                        Reduce::Sum => SCORE_SUM,
                        Reduce::Max => SCORE_MAX,
                    },
                };
                // SAFETY: the emulator checks every access.
                unsafe {
                    match arch {
                        Arch::Sm80 => score::ampere::score::<E, D, KS>(arguments),
                        Arch::Sm90a => score::hopper::score::<E, D, KS>(arguments),
                    }
                }
            })?;
        }
        *self.scores_of(call.layer) = memory.read(scores).map_err(Box::new)?;
        Ok(())
    }
}
