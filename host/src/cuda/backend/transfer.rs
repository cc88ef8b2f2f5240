//! Import and export of host slices: only the tokens' rows are moved.

use super::CudaBackend;
use crate::attention::staged::PageMemory;
use crate::attention::{BackendError, PagedTokens};
use crate::cache::{CacheShape, PagedOrder};
use crate::cuda::{CudaError, DeviceBuffer, PagedBuffers};

impl PageMemory for CudaBackend {
    fn shape(&self) -> &CacheShape {
        self.cache.shape()
    }

    fn read(&self, layer: u32, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        let elements = bytemuck::cast_slice_mut(bytes);
        Ok(self.cache.pool().read(self.element(layer, offset), elements, &self.stream)?)
    }

    fn write(&mut self, layer: u32, offset: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let elements = bytemuck::cast_slice(bytes);
        Ok(self.cache.pool().write(self.element(layer, offset), elements, &self.stream)?)
    }
}

/// The tokens to move, on the device: a foreign cache of one page, `[tokens, kv_heads, head_dim]`.
struct Rows {
    k: DeviceBuffer<u16>,
    v: DeviceBuffer<u16>,
    places: DeviceBuffer<u32>,
    pages: DeviceBuffer<u32>,
}

impl Rows {
    fn buffers(&self) -> PagedBuffers {
        let tokens = self.places.len() as u32;
        PagedBuffers {
            order: PagedOrder::Nhd,
            page_size: tokens.max(1),
            page_stride: tokens.max(1),
            pages: self.pages.pointer(),
            places: self.places.pointer(),
            count: tokens,
            k: self.k.pointer(),
            v: self.v.pointer(),
        }
    }
}

impl CudaBackend {
    /// The element of the pool at a byte of a layer.
    fn element(&self, layer: u32, offset: usize) -> usize {
        layer as usize * self.cache.shape().plane_elements() as usize + offset / size_of::<u16>()
    }

    /// As the backend's import, its arguments checked.
    pub(super) fn import_checked(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [&[u16]; 2],
    ) -> Result<(), CudaError> {
        let shape = *self.cache.shape();
        let dim = shape.head_dim as usize;
        let rows = foreign.map(|foreign| {
            let mut rows = vec![0; paged.places.len() * shape.row_elements()];
            for (row, at) in rows.chunks_exact_mut(dim).zip(offsets(&shape, paged)) {
                row.copy_from_slice(&foreign[at..at + dim]);
            }
            rows
        });
        let device = self.cache.device();
        let rows = Rows {
            k: DeviceBuffer::from_slice(device, "foreign keys", &rows[0])?,
            v: DeviceBuffer::from_slice(device, "foreign values", &rows[1])?,
            places: DeviceBuffer::from_slice(device, "places", paged.places)?,
            pages: DeviceBuffer::from_slice(device, "foreign pages", &[0])?,
        };
        // SAFETY: the caller checked pages and places, and the wait below keeps the arrays alive.
        unsafe { self.cache.import_pages(paged.layer, &rows.buffers(), self.stream.raw()) }?;
        self.stream.synchronize()
    }

    /// As the backend's export, its arguments checked.
    pub(super) fn export_checked(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [&mut [u16]; 2],
    ) -> Result<(), CudaError> {
        let shape = *self.cache.shape();
        let dim = shape.head_dim as usize;
        let elements = paged.places.len() * shape.row_elements();
        let device = self.cache.device();
        let rows = Rows {
            k: DeviceBuffer::uninitialized(device, "foreign keys", elements)?,
            v: DeviceBuffer::uninitialized(device, "foreign values", elements)?,
            places: DeviceBuffer::from_slice(device, "places", paged.places)?,
            pages: DeviceBuffer::from_slice(device, "foreign pages", &[0])?,
        };
        // SAFETY: the caller checked pages and places, and the reads below wait for the work.
        unsafe { self.cache.export_pages(paged.layer, &rows.buffers(), self.stream.raw()) }?;
        let (mut k, mut v) = (vec![0; elements], vec![0; elements]);
        rows.k.read(0, &mut k, &self.stream)?;
        rows.v.read(0, &mut v, &self.stream)?;
        for (foreign, rows) in foreign.into_iter().zip([k, v]) {
            for (row, at) in rows.chunks_exact(dim).zip(offsets(&shape, paged)) {
                foreign[at..at + dim].copy_from_slice(row);
            }
        }
        Ok(())
    }
}

/// Where each token's heads begin in the foreign cache, token by token.
fn offsets(shape: &CacheShape, paged: PagedTokens<'_>) -> impl Iterator<Item = usize> {
    let shape = *shape;
    let heads = move |token| (0..shape.kv_heads).map(move |head| (token, head));
    (0..paged.places.len())
        .flat_map(heads)
        .map(move |(token, head)| paged.table.offset(&shape, token, head))
}
