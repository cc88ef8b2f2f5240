//! Memory of the host's that comes when pages are written and goes when they are told to.

use crate::attention::{BackendError, ElasticMemory};
use crate::cache::{HostPages, KvElement, SLAB_PAGES};

impl<T: KvElement> ElasticMemory for HostPages<T> {
    fn extent_pages(&self) -> u32 {
        SLAB_PAGES
    }

    /// The system gives memory where something is written.
    fn map(&mut self, extent: u32) -> Result<(), BackendError> {
        self.mapped()[extent as usize] = true;
        Ok(())
    }

    fn unmap(&mut self, extent: u32) {
        self.mapped()[extent as usize] = false;
        self.discard(extent);
    }

    fn bytes(&mut self) -> u64 {
        let page = self.shape().page_bytes();
        let extents = self.mapped().iter().filter(|&&mapped| mapped).count() as u64;
        extents * u64::from(SLAB_PAGES) * page
    }
}
