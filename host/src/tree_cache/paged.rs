//! Tokens between a tree's paths and the paged caches of other engines.

use std::ops::Range;

use super::{CacheError, TreeCache};
use crate::attention::PagedTokens;
use crate::cache::{KvElement, PagedTable};
use crate::tree::NodeKey;

impl TreeCache {
    /// Copies K and V of a foreign sequence's first tokens, of one layer, into tokens `tokens` of the path
    /// to `node`: its ancestors' from the root on, then its own, as positions count. The forest has them
    /// already, by [`TreeCache::extend`]. `k` and `v` are whole foreign caches in the table's
    /// layout.
    ///
    /// For the tokens below a shared prefix start at a multiple of the page size, with the table's pages
    /// from there on; what of the first page is an ancestor's is written to it again.
    ///
    /// # Errors
    /// Those of [`TokenForest::path_targets`](crate::tree::TokenForest::path_targets) and
    /// [`Backend::import`](crate::attention::Backend::import).
    pub fn import<T: KvElement>(
        &mut self,
        layer: u32,
        node: NodeKey,
        tokens: Range<u32>,
        table: &PagedTable<'_>,
        k: &[T],
        v: &[T],
    ) -> Result<(), CacheError> {
        let layer = self.written_plane(layer)?;
        self.targets.clear();
        self.forest.path_targets(node, tokens, &mut self.targets)?;
        let (paged, foreign) = (paged(layer, &self.targets, table), [k, v].map(T::elements));
        Ok(self.backend.import(paged, foreign)?)
    }

    /// Copies K and V of tokens `tokens` of the path to `node`, of one layer, out to the first tokens of a
    /// foreign sequence. The rest of `k` and `v` stays as it is. The table names no page twice.
    ///
    /// # Errors
    /// Those of [`TokenForest::path_targets`](crate::tree::TokenForest::path_targets) and
    /// [`Backend::export`](crate::attention::Backend::export).
    pub fn export<T: KvElement>(
        &mut self,
        layer: u32,
        node: NodeKey,
        tokens: Range<u32>,
        table: &PagedTable<'_>,
        k: &mut [T],
        v: &mut [T],
    ) -> Result<(), CacheError> {
        let layer = self.plane(layer)?;
        self.targets.clear();
        self.forest.path_targets(node, tokens, &mut self.targets)?;
        let (paged, foreign) = (
            paged(layer, &self.targets, table),
            [k, v].map(T::elements_mut),
        );
        Ok(self.backend.export(paged, foreign)?)
    }
}

fn paged<'a>(layer: u32, places: &'a [u32], table: &PagedTable<'a>) -> PagedTokens<'a> {
    PagedTokens {
        layer,
        places,
        table: *table,
    }
}
