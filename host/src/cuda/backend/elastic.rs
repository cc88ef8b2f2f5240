//! Memory that comes and goes, ordered against the work of the cache's stream.

use super::CudaBackend;
use crate::attention::{BackendError, ElasticMemory};
use crate::cuda::ElasticPages;

impl ElasticMemory for CudaBackend {
    fn extent_pages(&self) -> u32 {
        self.cache.extent_pages()
    }

    fn map(&mut self, extent: u32) -> Result<(), BackendError> {
        let stream = &self.stream;
        let pages = self.cache.elastic_pages();
        Ok(pages.map_or(Ok(()), |pages| pages.map(extent, stream))?)
    }

    fn prepare(&mut self, extent: u32) {
        if let Some(pages) = self.cache.elastic_pages() {
            pages.prepare(extent);
        }
    }

    fn unmap(&mut self, extent: u32) {
        let stream = &self.stream;
        if let Some(pages) = self.cache.elastic_pages() {
            pages.unmap(extent, stream);
        }
    }

    fn bytes(&mut self) -> u64 {
        self.cache.elastic_pages().map_or(0, ElasticPages::bytes)
    }
}
