//! Rows of compacted nodes on the device: where they lie, their biases, and the kernel that gathers them.

use kernels_gpu::abi::{Cell, PAGE_TOKENS, RowSource, RowTarget};
use kernels_gpu::directory;
use kernels_gpu::layout::CORE;
use kernels_gpu::ptx::{self, Arguments as _};

use super::{CudaCache, CudaDevice, CudaError, DeviceBuffer, DevicePtr, Kernel, RawStream, Stream};
use crate::cache::{CacheShape, Directory};

/// What kernels read of a layer's compacted nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CompactedPointers {
    /// `[kv_heads][cell_stride]`, linked ([`directory`]).
    pub(super) cells: DevicePtr,
    pub(super) cell_stride: u32,
    /// `[cell][64]` f32, or null.
    pub(super) biases: DevicePtr,
}

/// The device's copy of a directory, and the biases.
#[derive(Debug, Default)]
pub(super) struct CompactedRows {
    /// `[layers, kv_heads, stride]`, linked.
    cells: Option<DeviceBuffer<Cell>>,
    stride: u32,
    /// The directory's version that is there.
    version: Option<u64>,
    /// `[cell][64]` of each layer that has some.
    biases: Vec<Option<DeviceBuffer<f32>>>,
    gather: Option<Kernel>,
    /// Moves biases with tokens; there where biases are.
    mover: Option<Kernel>,
    /// Counts arrays that were made: what was captured before reads others.
    pub(super) generation: u64,
}

impl CompactedRows {
    /// What kernels read of a layer.
    pub(super) fn at(&self, shape: &CacheShape, layer: u32) -> CompactedPointers {
        let first = layer as usize * shape.kv_heads as usize * self.stride as usize;
        let biases = self.biases.get(layer as usize).and_then(Option::as_ref);
        CompactedPointers {
            cells: self.cells.as_ref().map_or(DevicePtr::NULL, |cells| cells.at(first)),
            cell_stride: self.stride,
            biases: biases.map_or(DevicePtr::NULL, DeviceBuffer::pointer),
        }
    }

    /// Enqueues moves of biases: `moves: [count]` [`TokenMove`](kernels_gpu::abi::TokenMove)s.
    ///
    /// # Safety
    /// As [`CudaCache::copy`].
    pub(super) unsafe fn move_biases(
        &self,
        moves: DevicePtr,
        count: u32,
        kv_heads: u32,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let Some(mover) = &self.mover else { return Ok(()) };
        for plane in self.biases.iter().flatten() {
            let plane = plane.pointer().0;
            let arguments = ptx::MoveWords { plane, moves: moves.0, count, kv_heads };
            // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the caller's.
            unsafe { mover.launch_threads(u64::from(kv_heads), arguments, stream) }?;
        }
        Ok(())
    }

    fn gather(&mut self, device: &CudaDevice, shape: &CacheShape) -> Result<&Kernel, CudaError> {
        if self.gather.is_none() {
            let name = format!("compact_{}_d{}", shape.dtype, shape.head_dim);
            self.gather = Some(device.kernel(&name, ptx::Compact::BYTES)?);
        }
        Ok(self.gather.as_ref().expect("it was just loaded"))
    }
}

impl CudaCache {
    /// Brings the directory of compacted nodes to the device, if it is another than what is there; returns the bytes
    /// copied. Graphs captured before are not to be launched again where it has grown.
    ///
    /// # Errors
    /// [`CudaError::Length`] for a directory of other layers or KV heads, or with too many indices, of which nothing is
    /// copied; [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn set_directory(
        &mut self,
        directory: &Directory,
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        let (shape, device) = (*self.shape(), self.device().clone());
        let (layers, kv_heads) = directory.heads();
        for (argument, got, expected) in [
            ("layers of the directory", layers, shape.layers),
            ("KV heads of the directory", kv_heads, shape.kv_heads),
            (
                "indices of the directory",
                directory.stride(),
                directory.stride().min(directory::MAX_STRIDE),
            ),
        ] {
            if got != expected {
                let (got, expected) = (got as usize, expected as usize);
                return Err(CudaError::Length { argument, got, expected });
            }
        }
        let rows = &mut self.compacted;
        if rows.version == Some(directory.version()) || directory.stride() == 0 {
            return Ok(0);
        }
        let mut cells = directory.cells().to_vec();
        cells.chunks_exact_mut(directory.stride() as usize).for_each(directory::link);
        rows.version = None;
        if rows.cells.as_ref().is_none_or(|held| held.len() != cells.len()) {
            // What reads the old one may still run.
            stream.synchronize()?;
            rows.cells = None;
            let buffer = DeviceBuffer::uninitialized(&device, "the directory", cells.len())?;
            rows.cells = Some(buffer);
            rows.stride = directory.stride();
            rows.generation += 1;
        }
        let buffer = rows.cells.as_ref().expect("it was just made");
        buffer.upload(0, &cells, stream)?;
        rows.version = Some(directory.version());
        Ok(size_of_val(&cells[..]))
    }

    /// Makes room for a layer's biases, zeros, where there is none.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn make_biases(&mut self, layer: u32, stream: &Stream) -> Result<(), CudaError> {
        let (shape, device) = (*self.shape(), self.device().clone());
        shape.check_layer(layer)?;
        let rows = &mut self.compacted;
        rows.biases.resize_with(shape.layers as usize, || None);
        let biases = &mut rows.biases[layer as usize];
        if biases.is_none() {
            if rows.mover.is_none() {
                rows.mover = Some(device.kernel("move_words", ptx::MoveWords::BYTES)?);
            }
            let plane = DeviceBuffer::uninitialized(&device, "biases", plane_len(&shape))?;
            plane.fill_bytes(0, stream)?;
            *biases = Some(plane);
            rows.generation += 1;
        }
        Ok(())
    }

    /// Enqueues the rows `targets: [count]` of one layer, [`RowTarget`]s, of what [`RowSource`]s say.
    ///
    /// # Safety
    /// The arrays are valid until the work is done; ends ascend within `sources`, rows lie within the cache, none is named
    /// twice, nor is one also a source; with `biased`, [`CudaCache::make_biases`] was called for the layer. `stream` is a
    /// stream of the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Launch`], and those of [`CudaDevice::kernel`].
    pub unsafe fn compact(
        &mut self,
        layer: u32,
        targets: &DeviceBuffer<RowTarget>,
        sources: &DeviceBuffer<RowSource>,
        count: u32,
        biased: bool,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (shape, device) = (*self.shape(), self.device().clone());
        let pool = self.layer_pointers(layer)?.pool;
        let biases = if biased { self.compacted.at(&shape, layer).biases } else { DevicePtr::NULL };
        let arguments = ptx::Compact {
            pool: pool.0,
            biases: biases.0,
            targets: targets.pointer().0,
            sources: sources.pointer().0,
            count,
        };
        let threads = u64::from(count) * u64::from(shape.head_dim / CORE);
        let kernel = self.compacted.gather(&device, &shape)?;
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the caller's promise.
        unsafe { kernel.launch_threads(threads, arguments, stream.raw()) }
    }
}

/// Words of a plane that has one for each row of each cell of a layer.
pub(super) fn plane_len(shape: &CacheShape) -> usize {
    (shape.cells() * u64::from(PAGE_TOKENS)) as usize
}
