//! The kernels of attention: which, and with what arguments.

use kernels_gpu::attention::tile::MERGE_WARPS;
use kernels_gpu::ptx::{self, Arguments as _};

use super::compacted::CompactedPointers;
use super::launch::Launch;
use super::plan::PlanImages;
use super::tensor_map::{BOX_TOKENS, tensor_map};
use super::{Arch, CudaDevice, CudaError, CudaPlan, DevicePtr, Kernel, RawStream};
use crate::attention::AttentionParams;
use crate::cache::CacheShape;
use crate::format::{FormatKernel, KvFormat};

/// Where one attention call reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttendPointers {
    /// `[queries, q_heads, head_dim]`.
    pub(super) q: DevicePtr,
    /// The layer's plane of the page pool.
    pub(super) pool: DevicePtr,
    /// `[slots]`.
    pub(super) lengths: DevicePtr,
    /// `[queries, q_heads, head_dim]`.
    pub(super) out: DevicePtr,
    /// `[queries, q_heads]`, natural logarithm, or null.
    pub(super) lse: DevicePtr,
    /// `[kv_heads][partial_slots][group][head_dim]` f32.
    pub(super) partial_o: DevicePtr,
    /// `[kv_heads][partial_slots][group]` f32, base 2.
    pub(super) partial_lse: DevicePtr,
    /// Where the layer's compacted nodes have their rows.
    pub(super) compacted: CompactedPointers,
}

/// Arguments of a launch that has those of `native` pages, but for the pool, and others.
macro_rules! beside_native {
    ($arguments:ident of $native:ident { $($others:tt)* }) => {
        ptx::$arguments {
            q: $native.q,
            programs: $native.programs,
            masks: $native.masks,
            lengths: $native.lengths,
            out: $native.out,
            lse: $native.lse,
            partial_o: $native.partial_o,
            partial_lse: $native.partial_lse,
            stride: $native.stride,
            kv_heads: $native.kv_heads,
            group: $native.group,
            partial_slots: $native.partial_slots,
            scale_log2: $native.scale_log2,
            soft_cap: $native.soft_cap,
            $($others)*
        }
    };
}

/// The kernel that reads pages of a format.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    kernel: Kernel,
    pages: FormatKernel,
    /// It reads the rows of compacted nodes.
    compacted: bool,
}

impl Reader {
    pub(super) fn new(
        device: &CudaDevice,
        shape: &CacheShape,
        format: KvFormat,
    ) -> Result<Self, CudaError> {
        let pages = format.kernel(shape.page()).ok_or(CudaError::PlanFormat { format })?;
        let name = format!("attend_{}_{}_d{}", pages.family, shape.dtype, shape.head_dim);
        let compacted = format == KvFormat::Compacted;
        let parameters =
            if compacted { ptx::AttendCompacted::BYTES } else { ptx::AttendCoded::BYTES };
        Ok(Self { kernel: device.kernel(&name, parameters)?, pages, compacted })
    }

    /// Enqueues a launch that is otherwise as the one of native pages.
    ///
    /// # Safety
    /// As [`AttentionKernels::attend`].
    unsafe fn launch(
        &self,
        launch: Launch,
        native: ptx::Attend,
        rows: &CompactedPointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let FormatKernel { half_bytes, per_slab, format, .. } = self.pages;
        let pool = native.pool;
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the caller's.
        unsafe {
            if self.compacted {
                let arguments = beside_native!(AttendCompacted of native {
                    pool,
                    cells: rows.cells.0,
                    biases: rows.biases.0,
                    cell_stride: rows.cell_stride,
                });
                self.kernel.launch(launch, arguments, stream)
            } else {
                let arguments =
                    beside_native!(AttendCoded of native { pool, half_bytes, per_slab, format });
                self.kernel.launch(launch, arguments, stream)
            }
        }
    }
}

/// Where K or V of a foreign cache is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForeignHalf {
    pub(super) first: DevicePtr,
    pub(super) blocks: u32,
    /// From one block, token and KV head to the next, in pieces of eight elements.
    pub(super) strides: [u32; 3],
}

/// Where a foreign cache is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForeignPointers {
    pub(super) k: ForeignHalf,
    pub(super) v: ForeignHalf,
    /// Ids of blocks, `64 >> shift` a page.
    pub(super) table: DevicePtr,
    pub(super) shift: u32,
}

impl ForeignPointers {
    /// The arguments of a launch that is otherwise as the one of native pages.
    fn arguments(&self, native: ptx::Attend) -> ptx::AttendInPlace {
        let Self { k, v, table, shift } = *self;
        let ([k_block, k_token, k_head], [v_block, v_token, v_head]) = (k.strides, v.strides);
        let (k, v, table) = (k.first.0, v.first.0, table.0);
        beside_native!(AttendInPlace of native {
            k, v, table, k_block, k_token, k_head, v_block, v_token, v_head, shift,
        })
    }

    /// Whether there is something to copy boxes of.
    fn has_boxes(&self) -> bool {
        1 << self.shift >= BOX_TOKENS && self.k.blocks > 0 && self.v.blocks > 0
    }

    /// Those of Hopper's launch, by tensor maps.
    fn boxes(
        &self,
        device: &CudaDevice,
        native: ptx::Attend,
        heads: [u32; 2],
    ) -> Result<ptx::AttendBoxes, CudaError> {
        let map = |half| tensor_map(device, half, self.shift, heads);
        let (k, v) = (map(&self.k)?, map(&self.v)?);
        let (table, shift) = (self.table.0, self.shift);
        Ok(beside_native!(AttendBoxes of native { k, v, table, shift }))
    }
}

/// The kernels of one shape, compiled.
#[derive(Clone, Debug)]
pub(super) struct AttentionKernels {
    kv_heads: u32,
    head_dim: u32,
    attend: Kernel,
    /// What reads foreign blocks of eight tokens or more instead, on Hopper.
    boxes: Option<Kernel>,
    merge: Kernel,
}

impl AttentionKernels {
    pub(super) fn new(device: &CudaDevice, shape: &CacheShape) -> Result<Self, CudaError> {
        Self::of(device, shape, "attend", ptx::Attend::BYTES)
    }

    /// Those that read K and V where another engine keeps them.
    pub(super) fn in_place(device: &CudaDevice, shape: &CacheShape) -> Result<Self, CudaError> {
        let mut kernels = Self::of(device, shape, "attend_in_place", ptx::AttendInPlace::BYTES)?;
        if device.arch() == Arch::Sm90a {
            let CacheShape { dtype, head_dim, .. } = shape;
            let name = format!("attend_boxes_{dtype}_d{head_dim}");
            kernels.boxes = Some(device.kernel(&name, ptx::AttendBoxes::BYTES)?);
        }
        Ok(kernels)
    }

    fn of(
        device: &CudaDevice,
        shape: &CacheShape,
        attend: &str,
        parameters: &[u32],
    ) -> Result<Self, CudaError> {
        let CacheShape { kv_heads, dtype, head_dim, .. } = shape;
        let attend = device.kernel(&format!("{attend}_{dtype}_d{head_dim}"), parameters)?;
        let merge = device.kernel(&format!("merge_{dtype}_d{head_dim}"), ptx::Merge::BYTES)?;
        Ok(Self { kv_heads: *kv_heads, head_dim: *head_dim, attend, boxes: None, merge })
    }

    /// The kernels, to be asked for their resources.
    pub(super) fn all(&self) -> [&Kernel; 2] {
        [&self.attend, &self.merge]
    }

    /// Enqueues attention over the plan, a launch for native pages and one for each format that there is room for:
    /// results where an item is alone with its queries, partial results elsewhere.
    ///
    /// # Safety
    /// The pointers are valid for their documented shapes until the work is done, and `stream` belongs
    /// to the device's primary context.
    pub(super) unsafe fn attend(
        &self,
        plan: &CudaPlan,
        pointers: &AttendPointers,
        params: &AttentionParams,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let (images, arguments) = (&plan.images, self.arguments(plan, pointers, params));
        let capacity = images.capacity();
        let grid = [capacity.shares, self.kv_heads, 1];
        for (of, reader) in plan.readers.iter().enumerate() {
            // Blocks without items of one format make room for those of the next, which end after them.
            let launch = Launch { grid, overlaps_predecessor: of > 0 };
            let programs = images.words.at(of * capacity.words_of_one()).0;
            let arguments = ptx::Attend { programs, ..arguments };
            // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the caller
            // vouches for the memory and the stream, the plan for its buffers.
            unsafe {
                match reader {
                    Some(reader) => reader.launch(launch, arguments, &pointers.compacted, stream),
                    None => self.attend.launch(launch, arguments, stream),
                }
            }?;
        }
        Ok(())
    }

    /// Enqueues attention over the plan's native pages, which are blocks of a foreign cache.
    ///
    /// # Safety
    /// As [`Self::attend`]; the kernels are those of [`Self::in_place`], and rows begin at multiples of 16 bytes.
    pub(super) unsafe fn attend_in_place(
        &self,
        plan: &CudaPlan,
        foreign: &ForeignPointers,
        pointers: &AttendPointers,
        params: &AttentionParams,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let native = self.arguments(plan, pointers, params);
        let grid = [plan.images.capacity().shares, self.kv_heads, 1];
        let launch = Launch { grid, overlaps_predecessor: false };
        // SAFETY: as in `attend`.
        unsafe {
            match &self.boxes {
                Some(kernel) if foreign.has_boxes() => {
                    let heads = [self.kv_heads, self.head_dim];
                    let arguments = foreign.boxes(&kernel.device, native, heads)?;
                    kernel.launch(launch, arguments, stream)
                }
                _ => self.attend.launch(launch, foreign.arguments(native), stream),
            }
        }
    }

    /// The arguments of the launch for native pages.
    fn arguments(
        &self,
        plan: &CudaPlan,
        at: &AttendPointers,
        params: &AttentionParams,
    ) -> ptx::Attend {
        let images = &plan.images;
        let capacity = images.capacity();
        ptx::Attend {
            q: at.q.0,
            pool: at.pool.0,
            programs: images.words.pointer().0,
            masks: images.masks.pointer().0,
            lengths: at.lengths.0,
            out: at.out.0,
            lse: at.lse.0,
            partial_o: at.partial_o.0,
            partial_lse: at.partial_lse.0,
            stride: capacity.stride_words,
            kv_heads: self.kv_heads,
            group: plan.group_size,
            partial_slots: capacity.partial_slots,
            scale_log2: params.scale * std::f32::consts::LOG2_E,
            soft_cap: params.soft_cap.unwrap_or(0.0),
        }
    }

    /// Enqueues the merge of what [`Self::attend`] left, if the plan may leave anything.
    ///
    /// # Safety
    /// As [`Self::attend`].
    pub(super) unsafe fn merge(
        &self,
        plan: &PlanImages,
        group: u32,
        pointers: &AttendPointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let (at, capacity) = (pointers, plan.capacity());
        let rows = capacity.merge_rows as u32;
        let launch = Launch {
            grid: [merge_blocks(rows * group * self.kv_heads), 1, 1],
            overlaps_predecessor: true,
        };
        let arguments = ptx::Merge {
            partial_o: at.partial_o.0,
            partial_lse: at.partial_lse.0,
            rows: plan.merge_rows.pointer().0,
            slots: plan.merge_slots.pointer().0,
            out: at.out.0,
            lse: at.lse.0,
            row_count: rows,
            partial_slots: capacity.partial_slots,
            kv_heads: self.kv_heads,
            group,
        };
        // SAFETY: as in `attend`.
        unsafe { self.merge.launch(launch, arguments, stream) }
    }
}

/// Blocks of the merge launch: a warp for each of `warps` merge rows and query heads.
fn merge_blocks(warps: u32) -> u32 {
    warps.div_ceil(MERGE_WARPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::images::Image;

    #[test]
    fn only_a_merge_that_waits_by_itself_is_said_to() {
        for (arch, waits) in [(Arch::Sm80, false), (Arch::Sm90a, true)] {
            let image = Image::embedded("merge_bf16_d128", arch).unwrap();
            assert_eq!(image.entry("merge_bf16_d128").unwrap().waits, waits);
        }
    }

    #[test]
    fn a_merge_has_a_warp_for_every_row_and_query_head() {
        assert_eq!(merge_blocks(3 * 7 * 2), 11);
        assert_eq!(merge_blocks(0), 0);
    }
}
