//! The kernels that write the cache: their names and arguments.

use kernels_gpu::layout::CORE;

use super::{Arguments, CudaDevice, CudaError, DevicePtr, Kernel, RawStream};
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

/// Where the cache's own arrays are, for kernels of one's own that read or write it.
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
        let nowhere = CachePointers::default();
        let (none, dim, dtype) = (Append::default(), shape.head_dim, shape.dtype);
        let advance = advance_arguments(DevicePtr::NULL, 0, &nowhere).sizes();
        let append = append_arguments(&none, shape, &nowhere).sizes();
        let rope = append_rope_arguments(&none, &Rotary::default(), shape, &nowhere).sizes();
        let copy = copy_arguments(DevicePtr::NULL, 0, shape, &nowhere).sizes();
        Ok(Self {
            shape: *shape,
            advance: device.kernel("advance_counters", &advance)?,
            append: device.kernel(&format!("append_d{dim}"), &append)?,
            append_rope: device.kernel(&format!("append_rope_{dtype}_d{dim}"), &rope)?,
            copy: device.kernel(&format!("copy_d{dim}"), &copy)?,
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
        let arguments = advance_arguments(targets, count, at);
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the
        // caller's promise.
        unsafe {
            self.advance
                .launch_threads(u64::from(count), arguments, stream)
        }
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
        let arguments = append_arguments(append, &self.shape, at);
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
        let arguments = append_rope_arguments(append, rotary, &self.shape, at);
        // SAFETY: as in `advance`.
        unsafe { self.append_rope.launch_threads(threads, arguments, stream) }
    }

    /// # Safety
    /// `moves` is valid for `count` moves, within the pool.
    pub(super) unsafe fn copy(
        &self,
        moves: DevicePtr,
        count: u32,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let chunks = 2 * self.shape.row_elements() as u64 / u64::from(CORE);
        let threads = match count {
            0 => 0,
            _ => u64::from(self.shape.layers) * chunks,
        };
        let arguments = copy_arguments(moves, count, &self.shape, at);
        // SAFETY: as in `advance`.
        unsafe { self.copy.launch_threads(threads, arguments, stream) }
    }
}

fn advance_arguments(targets: DevicePtr, count: u32, at: &CachePointers) -> Arguments {
    Arguments::default()
        .pointer(targets)
        .word(count)
        .pointer(at.lengths)
}

fn append_arguments(append: &Append, shape: &CacheShape, at: &CachePointers) -> Arguments {
    Arguments::default()
        .pointer(at.pool)
        .pointer(append.k)
        .pointer(append.v)
        .pointer(append.targets)
        .pointer(at.lengths)
        .pointer(at.tail_pages)
        .word(append.count)
        .word(shape.kv_heads)
}

fn append_rope_arguments(
    append: &Append,
    rotary: &Rotary,
    shape: &CacheShape,
    at: &CachePointers,
) -> Arguments {
    Arguments::default()
        .pointer(at.pool)
        .pointer(append.k)
        .pointer(append.v)
        .pointer(append.targets)
        .pointer(at.lengths)
        .pointer(at.tail_pages)
        .pointer(rotary.positions)
        .pointer(rotary.cos)
        .pointer(rotary.sin)
        .word(append.count)
        .word(shape.kv_heads)
}

fn copy_arguments(
    moves: DevicePtr,
    count: u32,
    shape: &CacheShape,
    at: &CachePointers,
) -> Arguments {
    Arguments::default()
        .pointer(at.pool)
        .pointer(moves)
        .word(count)
        .word(shape.layers)
        .word(shape.pages)
        .word(shape.kv_heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DType;
    use crate::cuda::Arch;
    use crate::cuda::images::Image;

    #[test]
    fn the_embedded_kernels_take_the_arguments_that_are_passed() {
        for head_dim in crate::cache::HEAD_DIMS {
            let shape = CacheShape {
                layers: 1,
                kv_heads: 1,
                head_dim,
                dtype: DType::Bf16,
                pages: 1,
            };
            let at = CachePointers::default();
            let append = append_arguments(&Append::default(), &shape, &at).sizes();
            let (none, rotary) = (Append::default(), Rotary::default());
            let rope = append_rope_arguments(&none, &rotary, &shape, &at).sizes();
            let copy = copy_arguments(DevicePtr::NULL, 0, &shape, &at).sizes();
            let advance = advance_arguments(DevicePtr::NULL, 0, &at).sizes();
            for arch in Arch::ALL {
                for (name, passed) in [
                    (format!("append_d{head_dim}"), &append),
                    (format!("append_rope_bf16_d{head_dim}"), &rope),
                    (format!("append_rope_f16_d{head_dim}"), &rope),
                    (format!("copy_d{head_dim}"), &copy),
                    ("advance_counters".to_owned(), &advance),
                ] {
                    let image = Image::embedded(&name, arch).unwrap();
                    assert_eq!(&image.entry(&name).unwrap().parameters, passed, "{name}");
                }
            }
        }
    }
}
