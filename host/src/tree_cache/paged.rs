//! Tokens between a tree's paths and the paged caches of other engines.

use std::ops::Range;

use super::{CacheError, TreeCache};
use crate::attention::{PagedTokens, check_export};
use crate::cache::{KvElement, PagedTable};
use crate::format::KvFormat;
use crate::tree::{NodeKey, Span};

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
    /// [`Backend::import`](crate::attention::Backend::import); [`CacheError::InFormat`] for tokens in pages that are not
    /// native.
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
        let spans = self.forest.path_spans(node, tokens.clone())?;
        self.forest.path_targets(node, tokens, &mut self.targets)?;
        if let Some(span) = spans.iter().find(|span| span.format != KvFormat::Native) {
            return Err(CacheError::InFormat { tokens: span.tokens.clone(), format: span.format });
        }
        let (paged, foreign) = (paged(layer, &self.targets, table), [k, v].map(T::elements));
        Ok(self.backend.import(paged, foreign)?)
    }

    /// Copies K and V of tokens `tokens` of the path to `node`, of one layer, out to the first tokens of a
    /// foreign sequence, whichever format their pages are of. The rest of `k` and `v` stays as it is. The table names no page twice.
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
        let spans = self.forest.path_spans(node, tokens.clone())?;
        self.forest.path_targets(node, tokens, &mut self.targets)?;
        let paged = paged(layer, &self.targets, table);
        if spans.iter().all(|span| span.format == KvFormat::Native) {
            let foreign = [k, v].map(T::elements_mut);
            return Ok(self.backend.export(paged, foreign)?);
        }
        // Pages of other formats are not counted as native ones are; these places are the forest's own.
        let somewhere = vec![0; paged.places.len()];
        let checked = PagedTokens { places: &somewhere, ..paged };
        let foreign = [&mut *k, &mut *v].map(T::elements_mut);
        check_export(self.backend.shape(), checked, &foreign)?;
        for Span { format, tokens } in spans {
            let foreign = [&mut *k, &mut *v].map(T::elements_mut);
            self.backend.export_part(format, tokens, paged, foreign)?;
        }
        Ok(())
    }
}

fn paged<'a>(layer: u32, places: &'a [u32], table: &PagedTable<'a>) -> PagedTokens<'a> {
    PagedTokens { layer, places, table: *table }
}
