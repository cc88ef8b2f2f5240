//! Import and export of host slices: only the tokens' rows are moved.

use super::CudaBackend;
use std::ops::Range;

use crate::attention::staged::{self, PageMemory};
use crate::attention::{BackendError, PagedTokens, on_host};
use crate::cache::{CacheShape, DType, ElementsMut, PagedOrder, PagedTable};
use crate::cuda::{CudaError, DeviceBuffer, PagedBuffers};
use crate::format::KvFormat;

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
        let (shape, stored, half) = (self.shape, *self.cache.shape(), self.half());
        let (dim, padded) = (shape.head_dim as usize, stored.head_dim as usize);
        let rows = foreign.map(|foreign| {
            let mut rows = vec![0; paged.places.len() * stored.row_elements()];
            for (row, at) in rows.chunks_exact_mut(padded).zip(offsets(&shape, paged)) {
                half.widen(&foreign[at..at + dim], row);
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
        let elements = paged.places.len() * self.cache.shape().row_elements();
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
        let tokens = 0..paged.places.len();
        self.cut_rows(tokens, paged, [&k, &v], foreign);
        Ok(())
    }

    /// As the backend's export of a part, of padded pages.
    pub(super) fn export_padded(
        &self,
        format: KvFormat,
        tokens: Range<usize>,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        let [k, v] = foreign.map(|foreign| foreign.into_bytes().map(bytemuck::cast_slice_mut));
        let foreign: [&mut [u16]; 2] = [on_host("k", k)?, on_host("v", v)?];
        let all = paged.places.len();
        let elements = all * self.cache.shape().row_elements();
        let (mut k, mut v) = (vec![0; elements], vec![0; elements]);
        let dtype = self.shape.dtype;
        let padded = [&mut k, &mut v].map(|rows| of_dtype(dtype, rows));
        let table = PagedTable { order: PagedOrder::Nhd, page_size: all as u32, pages: &[0] };
        let part = PagedTokens { table, ..paged };
        staged::export(self, format, tokens.clone(), part, padded)?;
        self.cut_rows(tokens, paged, [&k, &v], foreign);
        Ok(())
    }

    /// Copies tokens of rows as they are on the device to the foreign cache.
    fn cut_rows(
        &self,
        tokens: Range<usize>,
        paged: PagedTokens<'_>,
        padded: [&[u16]; 2],
        foreign: [&mut [u16]; 2],
    ) {
        let (dim, stored) = (self.shape.head_dim as usize, self.cache.shape());
        let heads = self.shape.kv_heads as usize;
        for (foreign, rows) in foreign.into_iter().zip(padded) {
            let rows = rows.chunks_exact(stored.head_dim as usize);
            let all = rows.zip(offsets(&self.shape, paged));
            for (row, at) in all.skip(tokens.start * heads).take(tokens.len() * heads) {
                self.half().cut(row, &mut foreign[at..at + dim]);
            }
        }
    }

    /// As the backend's read of cells, of padded pages.
    pub(super) fn read_padded_cells(
        &self,
        layer: u32,
        cells: &[u32],
        mut rows: [&mut [f32]; 2],
    ) -> Result<(), BackendError> {
        let (dim, padded_dim) =
            (self.shape.head_dim as usize, self.cache.shape().head_dim as usize);
        let mut padded = rows.each_ref().map(|rows| vec![0.0; rows.len() / dim * padded_dim]);
        let [k, v] = &mut padded;
        staged::read_cells(self, layer, cells, [k, v])?;
        for (padded, rows) in padded.iter().zip(&mut rows) {
            self.half().cut(padded, rows);
        }
        Ok(())
    }
}

/// 16-bit elements as those of a cache.
fn of_dtype(dtype: DType, elements: &mut [u16]) -> ElementsMut<'_> {
    match dtype {
        DType::F16 => ElementsMut::F16(bytemuck::cast_slice_mut(elements)),
        _ => ElementsMut::Bf16(bytemuck::cast_slice_mut(elements)),
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
