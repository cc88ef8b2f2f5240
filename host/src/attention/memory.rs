//! Memory of backends: of the host's that devices copy from, and of pages, that comes and goes or is written beside
//! other work.

use super::BackendError;

/// Bytes in the host's memory.
pub trait HostBytes: std::fmt::Debug + Send + Sync {
    /// To be read.
    fn bytes(&self) -> &[u8];
    /// To be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl HostBytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A page of a saved prefix.
#[derive(Clone, Copy, Debug)]
pub struct LoadedPage<'a> {
    /// Of each layer that is stored K, then V: `[tokens, kv_heads, head_dim]`.
    pub rows: &'a [u8],
    /// Tokens that it has.
    pub tokens: u32,
    /// How many of the first ones are left out.
    pub skip: u32,
    /// Where each of the others goes, `page * 64 + token`.
    pub places: &'a [u32],
}

/// Writes pages from another thread, beside the backend's other work. It goes before the backend, and its places are of
/// pages that nobody else uses.
pub trait PageLoader: Send {
    /// Writes pages, and returns when they are there.
    ///
    /// # Errors
    /// The device's.
    fn load(&mut self, pages: &[LoadedPage<'_>]) -> Result<(), BackendError>;
}

/// Memory of pages that comes and goes, an *extent* at a time: pages in a row, of all layers and KV heads. Addresses stay.
///
/// The caller names extents within the cache, gives memory to those that lack it, and takes it from those of which no
/// page is held.
pub trait ElasticMemory {
    /// Pages of an extent.
    fn extent_pages(&self) -> u32;

    /// Gives an extent memory in which every V is finite.
    ///
    /// # Errors
    /// The device's own, for want of memory too; then the extent has none.
    fn map(&mut self, extent: u32) -> Result<(), BackendError>;

    /// Says that [`ElasticMemory::map`] of an extent will follow, so that what takes long may begin.
    fn prepare(&mut self, _extent: u32) {}

    /// Takes an extent's memory away, once the work that was enqueued so far is done.
    fn unmap(&mut self, extent: u32);

    /// Bytes of memory that the pages have now, with what is prepared and what work still uses.
    fn bytes(&mut self) -> u64;
}
