//! Tokens between this cache and a paged cache of another engine, on the same device.

use kernels_gpu::layout::CORE;
use kernels_gpu::ptx::{self, Arguments as _};

use super::launch::Launch;
use super::writers::CachePointers;
use super::{CudaCache, CudaDevice, CudaError, DevicePtr, Kernel, RawStream};
use crate::cache::{CacheShape, PagedOrder};

/// Device pointers of one layer of a foreign cache, and of the sequence to move.
#[derive(Clone, Copy, Debug)]
pub struct PagedBuffers {
    /// Order of a page's axes.
    pub order: PagedOrder,
    /// Tokens of a foreign page.
    pub page_size: u32,
    /// Tokens from a foreign page's first to the next page's: `page_size`, or twice that where a page
    /// holds K, then V, and `k` and `v` point into the same pool.
    pub page_stride: u32,
    /// The sequence's foreign pages, u32: its token `i` is token `i % page_size` of page
    /// `pages[i / page_size]`.
    pub pages: DevicePtr,
    /// Where each token is in this cache, `page * 64 + token`, u32: `[count]`.
    pub places: DevicePtr,
    /// Tokens to move.
    pub count: u32,
    /// The pool's keys: pages of `[page_size, kv_heads, head_dim]` or `[kv_heads, page_size, head_dim]`,
    /// 16 bits.
    pub k: DevicePtr,
    /// As `k`.
    pub v: DevicePtr,
}

/// The kernels of one head dimension, compiled.
#[derive(Clone, Debug)]
pub(super) struct PagedKernels {
    shape: CacheShape,
    import: Kernel,
    export: Kernel,
}

/// Which way tokens go.
#[derive(Clone, Copy, Debug)]
enum Direction {
    Import,
    Export,
}

impl PagedKernels {
    pub(super) fn new(device: &CudaDevice, shape: &CacheShape) -> Result<Self, CudaError> {
        let (dim, dtype) = (shape.head_dim, shape.dtype);
        Ok(Self {
            shape: *shape,
            import: device
                .kernel(&format!("import_pages_{dtype}_d{dim}"), ptx::ImportPages::BYTES)?,
            export: device.kernel(&format!("export_pages_d{dim}"), ptx::ExportPages::BYTES)?,
        })
    }

    /// # Safety
    /// The arrays are valid for their documented shapes until the work is done, the pools 16-byte
    /// aligned; what is written is named once.
    unsafe fn run(
        &self,
        direction: Direction,
        paged: &PagedBuffers,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        if paged.page_size == 0 {
            return Err(CudaError::Argument {
                argument: "page_size",
                value: "0".to_owned(),
                expected: "at least 1".to_owned(),
            });
        }
        let import = import_arguments(paged, &self.shape, at);
        let launch = |kernel: &Kernel| Launch {
            grid: grid(paged.count, &self.shape, kernel.threads),
            overlaps_predecessor: false,
        };
        let (into, out) = (&self.import, &self.export);
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the
        // caller's promise.
        unsafe {
            match direction {
                Direction::Import => into.launch(launch(into), import, stream),
                Direction::Export => out.launch(launch(out), export_arguments(&import), stream),
            }
        }
    }
}

impl PagedKernels {
    /// As [`CudaCache::import_pages`] to the layer at `at`.
    ///
    /// # Safety
    /// As [`CudaCache::import_pages`].
    ///
    /// # Errors
    /// [`CudaError::Argument`] for a page without tokens, [`CudaError::Launch`].
    pub(super) unsafe fn import_rows(
        &self,
        paged: &PagedBuffers,
        at: &CachePointers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.run(Direction::Import, paged, at, stream) }
    }
}

impl CudaCache {
    /// Enqueues a copy of a foreign sequence's first tokens of one layer into this cache.
    ///
    /// # Safety
    /// The arrays of `paged` are valid for their documented shapes until the work is done, its pools 16-byte
    /// aligned; pages and places exist, no place twice; `stream` is a stream of the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Argument`] for a page without tokens, [`CudaError::Launch`].
    pub unsafe fn import_pages(
        &self,
        layer: u32,
        paged: &PagedBuffers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.layer_pointers(layer)?;
        // SAFETY: the caller's.
        unsafe { self.paged.run(Direction::Import, paged, &at, stream) }
    }

    /// Enqueues a copy of tokens of one layer to a foreign cache, which is otherwise left as it is.
    ///
    /// # Safety
    /// As [`CudaCache::import_pages`], but it is the foreign pages that are not named twice.
    ///
    /// # Errors
    /// As [`CudaCache::import_pages`].
    pub unsafe fn export_pages(
        &self,
        layer: u32,
        paged: &PagedBuffers,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let at = self.layer_pointers(layer)?;
        // SAFETY: the caller's.
        unsafe { self.paged.run(Direction::Export, paged, &at, stream) }
    }
}

/// Threads for K and V of all chunks of whole groups of eight tokens, a row of blocks a KV head.
fn grid(count: u32, shape: &CacheShape, threads: u32) -> [u32; 3] {
    let chunks = u64::from(count.div_ceil(CORE) * CORE) * 2 * u64::from(shape.head_dim / CORE);
    let blocks = chunks.div_ceil(u64::from(threads));
    [u32::try_from(blocks).unwrap_or(u32::MAX), shape.kv_heads, 1]
}

fn import_arguments(
    paged: &PagedBuffers,
    shape: &CacheShape,
    at: &CachePointers,
) -> ptx::ImportPages {
    let (token_stride, head_stride) = match paged.order {
        PagedOrder::Nhd => (shape.kv_heads, 1),
        PagedOrder::Hnd => (1, paged.page_size),
    };
    ptx::ImportPages {
        pool: at.pool.0,
        k: paged.k.0,
        v: paged.v.0,
        places: paged.places.0,
        table: paged.pages.0,
        count: paged.count,
        kv_heads: shape.kv_heads,
        page_size: paged.page_size,
        page_stride: paged.page_stride * shape.kv_heads,
        token_stride,
        head_stride,
    }
}

/// The way back takes the same.
fn export_arguments(import: &ptx::ImportPages) -> ptx::ExportPages {
    ptx::ExportPages {
        pool: import.pool,
        k: import.k,
        v: import.v,
        places: import.places,
        table: import.table,
        count: import.count,
        kv_heads: import.kv_heads,
        page_size: import.page_size,
        page_stride: import.page_stride,
        token_stride: import.token_stride,
        head_stride: import.head_stride,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DType;

    fn shape(head_dim: u32) -> CacheShape {
        CacheShape { layers: 1, kv_heads: 3, head_dim, dtype: DType::Bf16, pages: 1 }
    }

    #[test]
    fn every_group_of_eight_tokens_has_its_threads() {
        assert_eq!(grid(0, &shape(128), 256), [0, 3, 1]);
        assert_eq!(grid(1, &shape(128), 256), [1, 3, 1]);
        assert_eq!(grid(9, &shape(128), 256), [2, 3, 1]);
        assert_eq!(grid(17, &shape(64), 256), [2, 3, 1]);
    }
}
