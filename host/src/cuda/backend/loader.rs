//! Pages of saved prefixes on their way to the device, on a stream and a thread of their own.

use super::CudaBackend;
use super::padded::Padding;
use crate::attention::{BackendError, LoadedPage, PageLoader};
use crate::cache::{CacheShape, PagedOrder};
use crate::cuda::paged::PagedKernels;
use crate::cuda::{CachePointers, CudaError, DeviceBuffer, DevicePtr, PagedBuffers, Stream};

/// Copies pages to the device and has a kernel bring their rows to their places.
pub(super) struct Loader {
    stream: Stream,
    /// Of the cache's pages.
    shape: CacheShape,
    /// What pads rows that are read, if the cache's are padded.
    padding: Option<Padding>,
    kernels: PagedKernels,
    /// Of each layer.
    layers: Vec<CachePointers>,
    /// Pages as they were read.
    staged: Option<DeviceBuffer<u8>>,
    /// Those pages, padded.
    padded: Option<DeviceBuffer<u8>>,
    places: Option<DeviceBuffer<u32>>,
    /// The number of a page's only foreign page: 0.
    zero: DeviceBuffer<u32>,
}

impl Loader {
    pub(super) fn new(backend: &CudaBackend) -> Result<Self, CudaError> {
        let (cache, device) = (&backend.cache, backend.cache.device());
        let shape = *cache.shape();
        let stream = Stream::new(device)?;
        // What the pages held before may be read still.
        backend.passed.record(&backend.stream)?;
        stream.wait(&backend.passed)?;
        let layers = (0..shape.layers).map(|layer| cache.layer_pointers(layer));
        Ok(Self {
            stream,
            shape,
            padding: backend.padded.as_ref().map(|padded| padded.padding().clone()),
            kernels: cache.paged.clone(),
            layers: layers.collect::<Result<_, _>>()?,
            staged: None,
            padded: None,
            places: None,
            zero: DeviceBuffer::from_slice(device, "foreign pages", &[0])?,
        })
    }

    /// Enqueues a page whose rows lie in `staged` from byte `at` on, and whose places in `places` from `first` on.
    fn enqueue(
        &self,
        page: &LoadedPage<'_>,
        (staged, at): (&DeviceBuffer<u8>, usize),
        (places, first): (&DeviceBuffer<u32>, usize),
    ) -> Result<(), CudaError> {
        let row = self.shape.row_elements() * self.shape.dtype.bytes();
        let (half, skip) = (page.tokens as usize * row, page.skip as usize * row);
        for (layer, pointers) in self.layers.iter().enumerate() {
            let k = at + 2 * layer * half + skip;
            let buffers = PagedBuffers {
                order: PagedOrder::Nhd,
                page_size: page.tokens,
                page_stride: page.tokens,
                pages: self.zero.pointer(),
                places: places.at(first),
                count: page.places.len() as u32,
                k: staged.at(k),
                v: staged.at(k + half),
            };
            // SAFETY: rows and places are there, the latter of pages that nobody else uses; both are kept until the
            // stream is waited for.
            unsafe { self.kernels.import_rows(&buffers, pointers, self.stream.raw()) }?;
        }
        Ok(())
    }

    /// Where a page's rows are that lie in `staged` from byte `at` on: there, or padded in `padded`.
    fn rows<'a>(
        &self,
        page: &LoadedPage<'_>,
        (staged, at): (&'a DeviceBuffer<u8>, usize),
        padded: Option<&'a DeviceBuffer<u8>>,
    ) -> Result<(&'a DeviceBuffer<u8>, usize), CudaError> {
        let (Some(padding), Some(padded)) = (&self.padding, padded) else {
            return Ok((staged, at));
        };
        let half = padding.half();
        let (to, heads) = (half.padded_bytes(at), half.heads(page.rows.len()));
        let rows = [staged.at(at), DevicePtr::NULL];
        // SAFETY: the page's rows are there and fit, padded, from `to` on; who enqueues waits before they go.
        unsafe { padding.widen(rows, heads, padded.at(to), self.stream.raw()) }?;
        Ok((padded, to))
    }

    fn load_all(&mut self, pages: &[LoadedPage<'_>]) -> Result<(), CudaError> {
        let bytes: usize = pages.iter().map(|page| page.rows.len()).sum();
        let tokens: usize = pages.iter().map(|page| page.places.len()).sum();
        let device = self.stream.device().clone();
        let staged = match self.staged.take().filter(|staged| staged.len() >= bytes) {
            Some(staged) => staged,
            None => DeviceBuffer::uninitialized(&device, "pages that are read", bytes)?,
        };
        let places = match self.places.take().filter(|places| places.len() >= tokens) {
            Some(places) => places,
            None => DeviceBuffer::uninitialized(&device, "places of tokens", tokens)?,
        };
        let padded = match &self.padding {
            Some(padding) => {
                let (bytes, what) = (padding.half().padded_bytes(bytes), "padded pages");
                let held = self.padded.take().filter(|held| held.len() >= bytes);
                let make = |_| DeviceBuffer::uninitialized(&device, what, bytes);
                Some(held.ok_or(()).or_else(make)?)
            }
            None => None,
        };
        let (mut at, mut first) = (0, 0);
        let mut enqueued = Ok(());
        for page in pages {
            // SAFETY: who called `load` keeps the rows until it returns, and it waits below.
            enqueued = unsafe { staged.enqueue_write(at, page.rows, &self.stream) }
                .and_then(|()| places.upload(first, page.places, &self.stream))
                .and_then(|()| self.rows(page, (&staged, at), padded.as_ref()))
                .and_then(|rows| self.enqueue(page, rows, (&places, first)));
            if enqueued.is_err() {
                break;
            }
            (at, first) = (at + page.rows.len(), first + page.places.len());
        }
        let waited = self.stream.synchronize();
        (self.staged, self.places, self.padded) = (Some(staged), Some(places), padded);
        enqueued.and(waited)
    }
}

impl PageLoader for Loader {
    fn load(&mut self, pages: &[LoadedPage<'_>]) -> Result<(), BackendError> {
        Ok(self.load_all(pages)?)
    }
}
