//! Import and export of host slices.

use super::CudaBackend;
use crate::attention::PagedTokens;
use crate::cache::PagedTable;
use crate::cuda::{CudaError, DeviceBuffer, PagedBuffers};

/// A foreign cache's layer and what to move, on the device.
struct Uploaded {
    k: DeviceBuffer<u16>,
    v: DeviceBuffer<u16>,
    places: DeviceBuffer<u32>,
    pages: DeviceBuffer<u32>,
}

impl Uploaded {
    fn buffers(&self, table: &PagedTable<'_>) -> PagedBuffers {
        PagedBuffers {
            order: table.order,
            page_size: table.page_size,
            page_stride: table.page_size,
            pages: self.pages.pointer(),
            places: self.places.pointer(),
            count: self.places.len() as u32,
            k: self.k.pointer(),
            v: self.v.pointer(),
        }
    }
}

impl CudaBackend {
    /// As the backend's import, its arguments checked.
    pub(super) fn import_checked(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [&[u16]; 2],
    ) -> Result<(), CudaError> {
        let (layer, uploaded) = (paged.layer, self.upload_paged(paged, foreign)?);
        // SAFETY: the caller checked pages and places, and the wait below keeps the arrays alive.
        unsafe {
            self.cache
                .import_pages(layer, &uploaded.buffers(&paged.table), self.stream.raw())
        }?;
        self.stream.synchronize()
    }

    /// As the backend's export, its arguments checked.
    pub(super) fn export_checked(
        &mut self,
        paged: PagedTokens<'_>,
        [k, v]: [&mut [u16]; 2],
    ) -> Result<(), CudaError> {
        let (layer, uploaded) = (paged.layer, self.upload_paged(paged, [k, v])?);
        // SAFETY: the caller checked pages and places, and the reads below wait for the work.
        unsafe {
            self.cache
                .export_pages(layer, &uploaded.buffers(&paged.table), self.stream.raw())
        }?;
        uploaded.k.read(0, k, &self.stream)?;
        uploaded.v.read(0, v, &self.stream)
    }

    fn upload_paged(
        &self,
        paged: PagedTokens<'_>,
        [k, v]: [&[u16]; 2],
    ) -> Result<Uploaded, CudaError> {
        let device = self.cache.device();
        Ok(Uploaded {
            k: DeviceBuffer::from_slice(device, "foreign keys", k)?,
            v: DeviceBuffer::from_slice(device, "foreign values", v)?,
            places: DeviceBuffer::from_slice(device, "places", paged.places)?,
            pages: DeviceBuffer::from_slice(device, "foreign pages", paged.table.pages)?,
        })
    }
}
