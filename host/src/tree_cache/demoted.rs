//! Sealed prefixes in the host's memory.

use std::io::Cursor;

use super::{CacheError, Restored, TreeCache};
use crate::attention::HostBytes;
use crate::saved::{Checked, Header, Pages};
use crate::tree::NodeKey;

/// A sealed prefix that [`TreeCache::demote`] wrote to the host's memory, which copies to the device are made from
/// without a detour: pinned, where that is a GPU.
#[derive(Debug)]
pub struct Demoted {
    bytes: Box<dyn HostBytes>,
    header: Header,
}

impl Demoted {
    /// Token ids, from the first on.
    pub fn tokens(&self) -> &[u32] {
        &self.header.tokens
    }

    /// Bytes that it takes: those of a file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

impl TreeCache {
    /// Writes the sealed path to `node`, ids with K and V, to the host's memory, as [`TreeCache::save`] does to a file, and
    /// gives the pages back of all nodes of it that nobody uses: those that are not pinned, with nothing below them.
    /// [`TreeCache::promote`] and [`TreeCache::restore`] bring it back.
    ///
    /// # Errors
    /// Those of [`TreeCache::save_to`], and want of memory; then nothing has changed.
    pub fn demote(&mut self, node: NodeKey) -> Result<Demoted, CacheError> {
        let header = self.header(self.prefix.path_tokens(node)?);
        let mut bytes = self.backend.host_bytes(header.file_bytes())?;
        self.save_to(node, &mut Cursor::new(bytes.bytes_mut()))?;
        self.prefix.evict_path(&mut self.forest, node)?;
        self.settle();
        Ok(Demoted { bytes, header })
    }

    /// Brings a demoted prefix back without computing any of it, into a cache like that which it is of, under `salt`; or a
    /// saved one, by larger reads than [`TreeCache::load`]'s. What was demoted stays in the host's memory.
    ///
    /// # Errors
    /// [`CacheError::Saved`] for one of another cache or a read that fails, those of [`TreeCache::open`] and
    /// [`TreeCache::extend`] (too few pages), or the device's.
    pub fn promote<'a>(
        &mut self,
        from: impl Into<RestoreFrom<'a>>,
        salt: u64,
    ) -> Result<Restored, CacheError> {
        let mut nobody = |_: &mut Self, _: NodeKey, _: &[u32]| Ok::<(), CacheError>(());
        Self::bring(self, |cache| cache, from.into(), salt, None, &mut nobody)
    }
}

/// What [`TreeCache::restore`] reads.
pub enum RestoreFrom<'a> {
    /// What [`TreeCache::save`] wrote, a file or anything else that can be read from any place on.
    Input(&'a mut dyn crate::saved::Input),
    /// What [`TreeCache::demote`] wrote.
    Host(&'a Demoted),
}

impl<'a, I: crate::saved::Input> From<&'a mut I> for RestoreFrom<'a> {
    fn from(input: &'a mut I) -> Self {
        Self::Input(input)
    }
}

impl<'a> From<&'a Demoted> for RestoreFrom<'a> {
    fn from(demoted: &'a Demoted) -> Self {
        Self::Host(demoted)
    }
}

impl std::fmt::Debug for RestoreFrom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Input(_) => "RestoreFrom::Input",
            Self::Host(_) => "RestoreFrom::Host",
        })
    }
}

impl RestoreFrom<'_> {
    /// Whose header it has, and that header.
    pub(super) fn header(&mut self, cache: &TreeCache) -> Result<Header, CacheError> {
        let header = match self {
            Self::Input(input) => Header::read(&mut Checked::new(&mut &mut **input))?,
            Self::Host(demoted) => demoted.header.clone(),
        };
        header.check(&cache.header(Vec::new()))?;
        Ok(header)
    }
}

impl<'a> RestoreFrom<'a> {
    /// Its pages, by runs of at most `tokens` tokens.
    pub(super) fn pages(
        self,
        cache: &TreeCache,
        header: &Header,
        tokens: u32,
    ) -> Result<Pages<'a>, CacheError> {
        Ok(match self {
            Self::Input(input) => {
                let buffer = cache.backend.host_bytes(header.run_bytes(tokens))?;
                Pages::Input(input, buffer)
            }
            Self::Host(demoted) => Pages::Host(demoted.bytes()),
        })
    }
}
