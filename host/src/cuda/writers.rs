//! The kernels that write the cache: their names and arguments.

use kernels_gpu::layout::CORE;
use kernels_gpu::ptx::{self, Arguments as _};

use super::{CudaDevice, CudaError, DevicePtr, Kernel, Launch, RawStream};
use crate::cache::CacheShape;

/// Device pointers of one append.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append {
    /// `[count]` [`AppendTarget`](kernels_gpu::abi::AppendTarget)s; [`NONE`](kernels_gpu::abi::NONE) for
    /// a row that goes nowhere.
    pub targets: DevicePtr,
    /// Number of targets.
    pub count: u32,
    /// `[count, kv_heads, head_dim]`, 16 bits.
    pub k: DevicePtr,
    /// As `k`.
    pub v: DevicePtr,
}

/// Device pointers of the rotation that goes with an append.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotary {
    /// `[count]` u32: the position of each row, as for the queries that the model rotates itself. In a
    /// captured step the model advances them on the device.
    pub positions: DevicePtr,
    /// `[positions, head_dim / 2]` f32, as [`RotaryTable::cos`](crate::attention::RotaryTable::cos).
    pub cos: DevicePtr,
    /// `[positions, head_dim / 2]` f32, as [`RotaryTable::sin`](crate::attention::RotaryTable::sin).
    pub sin: DevicePtr,
}

/// Where the cache's own arrays are, for kernels of one's own that read or write it. V that they write must be finite,
/// or rows that do not see it become NaN too; [`CudaCache::append`](super::CudaCache::append) takes care of that.
#[derive(Clone, Copy, Debug, Default)]
pub struct CachePointers {
    /// `[pages, kv_heads, 2, PAGE_TOKENS, head_dim]` of one layer, laid out as [`layout`](crate::layout) says.
    pub pool: DevicePtr,
    /// `[slots]` u32: tokens of each growing node.
    pub lengths: DevicePtr,
    /// `[slots]` u32: the page of each growing node's next token.
    pub tail_pages: DevicePtr,
}

/// The kernels of one cache shape, compiled.
#[derive(Clone, Debug)]
pub(super) struct WriterKernels {
    shape: CacheShape,
    advance: Kernel,
    append: Kernel,
    append_rope: Kernel,
    copy: Kernel,
}

impl WriterKernels {
    pub(super) fn new(device: &CudaDevice, shape: &CacheShape) -> Result<Self, CudaError> {
        let (dim, dtype) = (shape.head_dim, shape.dtype);
        Ok(Self {
            shape: *shape,
            advance: device.kernel("advance_counters", ptx::Advance::BYTES)?,
            append: device.kernel(&format!("append_{dtype}_d{dim}"), ptx::Append::BYTES)?,
            append_rope: device
                .kernel(&format!("append_rope_{dtype}_d{dim}"), ptx::AppendRope::BYTES)?,
            copy: device.kernel(&format!("copy_d{dim}"), ptx::Copy::BYTES)?,
        })
    }

    /// # Safety
    /// `targets` is valid for `count` reads; each counter that one names exists, and no two name the same.
    pub(super) unsafe fn advance(
        &self,
        targets: DevicePtr,
        count: u32,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let arguments = ptx::Advance { targets: targets.0, count, lengths: at.lengths.0 };
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the
        // caller's promise.
        unsafe { self.advance.launch_threads(u64::from(count), arguments, stream) }
    }

    /// # Safety
    /// The arrays are valid for their shapes and 16-byte aligned; targets are distinct, and name pages of
    /// the pool or counters that exist.
    pub(super) unsafe fn append(
        &self,
        append: &Append,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let chunks = 2 * self.shape.row_elements() as u64 / u64::from(CORE);
        let threads = u64::from(append.count) * chunks;
        let arguments = ptx::Append {
            pool: at.pool.0,
            k: append.k.0,
            v: append.v.0,
            targets: append.targets.0,
            lengths: at.lengths.0,
            tail_pages: at.tail_pages.0,
            count: append.count,
            kv_heads: self.shape.kv_heads,
        };
        // SAFETY: as in `advance`.
        unsafe { self.append.launch_threads(threads, arguments, stream) }
    }

    /// # Safety
    /// As [`Self::append`]; positions are valid for as many reads as targets, and within the tables.
    pub(super) unsafe fn append_rope(
        &self,
        append: &Append,
        rotary: &Rotary,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // A thread has two chunks.
        let threads = self.shape.row_elements() as u64 / u64::from(CORE) * u64::from(append.count);
        let arguments = ptx::AppendRope {
            pool: at.pool.0,
            k: append.k.0,
            v: append.v.0,
            targets: append.targets.0,
            lengths: at.lengths.0,
            tail_pages: at.tail_pages.0,
            positions: rotary.positions.0,
            cos: rotary.cos.0,
            sin: rotary.sin.0,
            count: append.count,
            kv_heads: self.shape.kv_heads,
        };
        // SAFETY: as in `advance`.
        unsafe { self.append_rope.launch_threads(threads, arguments, stream) }
    }

    /// Moves tokens, `share` of them one after the other.
    ///
    /// # Safety
    /// `moves` is valid for `count` moves, within the pool; if that is more than `share` no target is a source.
    pub(super) unsafe fn copy(
        &self,
        moves: DevicePtr,
        [count, share]: [u32; 2],
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let chunks = 2 * self.shape.row_elements() as u64 / u64::from(CORE);
        let threads = u64::from(self.shape.layers) * chunks;
        let blocks = threads.div_ceil(u64::from(self.copy.threads())) as u32;
        let grid = [blocks, count.div_ceil(share.max(1)), 1];
        let launch = Launch { grid, overlaps_predecessor: false };
        let arguments = ptx::Copy {
            pool: at.pool.0,
            moves: moves.0,
            count,
            share,
            layers: self.shape.layers,
            pages: self.shape.pages,
            kv_heads: self.shape.kv_heads,
        };
        // SAFETY: as in `advance`.
        unsafe { self.copy.launch(launch, arguments, stream) }
    }
}
