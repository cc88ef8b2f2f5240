//! Import and export of host slices, as [`HostPages`](crate::cache::HostPages) has them.

use super::CudaBackend;
use crate::cache::{KvElement, PagedTable, ShapeError};
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
    /// Copies a foreign sequence's first tokens of one layer into this cache: token `i` to `places[i]`
    /// (`page * 64 + token`), none twice. `k` and `v` are whole foreign caches in the table's layout.
    ///
    /// # Errors
    /// [`CudaError::Paged`], naming the argument; [`CudaError::Shape`] for another element type than the
    /// cache's; [`CudaError::OutOfMemory`] and those of the driver.
    pub fn import<T: KvElement>(
        &mut self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &[T],
        v: &[T],
    ) -> Result<(), CudaError> {
        let paged = self.upload_paged(layer, places, table, [k, v])?;
        // SAFETY: pages and places were checked, and the wait below keeps the arrays alive.
        unsafe {
            self.cache
                .import_pages(layer, &paged.buffers(table), self.stream.raw())
        }?;
        self.stream.synchronize()
    }

    /// Copies tokens of one layer out to a foreign cache: `places[i]` to the sequence's token `i`. The
    /// rest of `k` and `v` stays as it is. The table names no page twice.
    ///
    /// # Errors
    /// As [`CudaBackend::import`].
    pub fn export<T: KvElement>(
        &mut self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &mut [T],
        v: &mut [T],
    ) -> Result<(), CudaError> {
        let paged = self.upload_paged(layer, places, table, [k, v])?;
        // SAFETY: pages and places were checked, and the reads below wait for the work.
        unsafe {
            self.cache
                .export_pages(layer, &paged.buffers(table), self.stream.raw())
        }?;
        paged.k.read(0, bytemuck::cast_slice_mut(k), &self.stream)?;
        paged.v.read(0, bytemuck::cast_slice_mut(v), &self.stream)
    }

    fn upload_paged<T: KvElement>(
        &self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        [k, v]: [&[T]; 2],
    ) -> Result<Uploaded, CudaError> {
        let shape = self.cache.shape();
        if shape.dtype != T::DTYPE {
            return Err(CudaError::Shape(ShapeError::Element {
                expected: T::DTYPE,
                found: shape.dtype,
            }));
        }
        table.check(shape, layer, places, [k.len(), v.len()])?;
        let device = self.cache.device();
        let (k, v) = (bytemuck::cast_slice(k), bytemuck::cast_slice(v));
        Ok(Uploaded {
            k: DeviceBuffer::from_slice(device, "foreign keys", k)?,
            v: DeviceBuffer::from_slice(device, "foreign values", v)?,
            places: DeviceBuffer::from_slice(device, "places", places)?,
            pages: DeviceBuffer::from_slice(device, "foreign pages", table.pages)?,
        })
    }
}
