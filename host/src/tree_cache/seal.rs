//! Nodes in other formats.

use kernels_gpu::abi::PAGE_TOKENS;

use super::{CacheError, TreeCache};
use crate::attention::{Backend, BackendError, Channels};
use crate::cache::PoolError;
use crate::format::KvFormat;
use crate::tree::{ForestError, NodeKey, Recoding};

/// Pages of one format that a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatBytes {
    /// The format.
    pub format: KvFormat,
    /// Pages that nodes hold.
    pub pages: u32,
    /// Bytes of those pages, of all layers and KV heads.
    pub bytes: u64,
    /// Bytes of the memory set aside for pages of the format: native pages, or whole slabs.
    pub held_bytes: u64,
}

/// Whether nodes can be sealed in `format` on a backend.
pub(super) fn check_sealing(backend: &dyn Backend, format: KvFormat) -> Result<(), CacheError> {
    match format {
        KvFormat::Compacted => Err(CacheError::SealedAsCompacted),
        _ => Ok(backend.check_format(format)?),
    }
}

impl TreeCache {
    /// Rewrites the full pages of `node` in `format`, and gives the native ones back at once; the rest of the node, and
    /// what it grows by, stays native. Returns the pages rewritten; 0 if there were none. With [`KvFormat::Native`]
    /// pages of another format become native again, with what the format has kept of them. Batches made before are out
    /// of date. Of the layers those are rewritten that have keys and values of their own
    /// ([`LayerMap`](crate::cache::LayerMap)). That token ids are found again is [`TreeCache::seal`]'s.
    ///
    /// A format that keeps some channels of keys ([`KvFormat::Thin`]) keeps those of the nearest ancestor that has pages of the
    /// same format; without one, those of the largest keys of `node`.
    ///
    /// # Errors
    /// [`CacheError::SealedAsCompacted`]; [`BackendError::Format`] from a device without that format, [`BackendError::FormatShape`] for numbers that do not
    /// fit the heads, [`BackendError::Unstorable`] for a NaN or an infinity; [`ForestError::Draft`];
    /// [`ForestError::OtherFormat`] for a node that has pages of another one; [`PoolError::OutOfSlabs`], for the new
    /// pages are there before the old ones are free.
    pub fn seal_as(&mut self, node: NodeKey, format: KvFormat) -> Result<u32, CacheError> {
        self.seal_scored(node, format, &[])
    }

    /// As [`TreeCache::seal_as`]; channels, where no ancestor has chosen any, are those of the highest score: the sum of
    /// squares of the node's keys times `weights`, the sum of squares of recent queries over the query heads of a KV
    /// head: `[layers, kv_heads, head_dim]`, of the layers that have keys of their own. ThinK takes the last 32 queries of the prompt.
    ///
    /// # Errors
    /// Those of [`TreeCache::seal_as`]; [`BackendError::Length`] for weights of another length.
    pub fn seal_scored(
        &mut self,
        node: NodeKey,
        format: KvFormat,
        weights: &[f32],
    ) -> Result<u32, CacheError> {
        if format == KvFormat::Native {
            return self.unseal(node);
        }
        check_sealing(&*self.backend, format)?;
        let shape = *self.backend.shape();
        if !weights.is_empty() {
            let elements = shape.layers as usize * shape.row_elements();
            let of = "[layers, kv_heads, head_dim]";
            crate::attention::check_length("weights", weights.len(), elements, of)?;
        }
        let class = format.slab_class(self.backend.stored().page());
        let above = format.kept_channels().and_then(|_| self.forest.page_above(node, format));
        let begun = self.with_slabs(|forest| forest.begin_seal(node, format, class))?;
        let Some(recoding) = begun else {
            return Ok(0);
        };
        let channels = above.map_or(Channels::Scored(weights), Channels::Of);
        let written = self.backend.encode(format, &recoding.from, &recoding.to, channels);
        self.conclude(recoding, written)
    }

    fn unseal(&mut self, node: NodeKey) -> Result<u32, CacheError> {
        let (format, tokens) = self.forest.format(node)?;
        self.map_for(tokens / PAGE_TOKENS)?;
        let Some(recoding) = self.forest.begin_unseal(node)? else {
            return Ok(0);
        };
        let written = self.backend.decode(format, &recoding.from, &recoding.to);
        self.conclude(recoding, written)
    }

    fn conclude(
        &mut self,
        recoding: Recoding,
        written: Result<(), BackendError>,
    ) -> Result<u32, CacheError> {
        let pages = recoding.to.len() as u32;
        match written {
            Ok(()) => self.forest.finish(recoding),
            Err(_) => self.forest.abandon(recoding),
        }
        self.settle();
        Ok(written.map(|()| pages)?)
    }

    /// Seals a node that was forked, as the builder was told. Where that cannot be, the node stays native: for want of
    /// pages, or for a number that the format cannot store.
    pub(super) fn seal_forked(&mut self, node: NodeKey) -> Result<(), CacheError> {
        if self.sealed_format == KvFormat::Native {
            return Ok(());
        }
        match self.seal_as(node, self.sealed_format) {
            Ok(_)
            | Err(CacheError::Backend(BackendError::Unstorable { .. }))
            | Err(CacheError::Forest(
                ForestError::OtherFormat { .. }
                | ForestError::Compacted { .. }
                | ForestError::Pool(PoolError::OutOfSlabs { .. }),
            )) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes native what a merge of the chain below `node` moves.
    pub(super) fn unseal_below(&mut self, node: NodeKey) -> Result<(), CacheError> {
        let (nodes, pages) = self.forest.coded_below(node)?;
        self.map_for(u32::try_from(pages).unwrap_or(u32::MAX))?;
        self.forest.pool().check_free(pages)?;
        for node in nodes {
            self.unseal(node)?;
        }
        Ok(())
    }

    /// What pages take, by format: the native ones first, then every format that was used. Of compacted nodes it is the
    /// pages that their rows lie in.
    pub fn bytes(&self) -> Vec<FormatBytes> {
        let (pool, shape) = (self.forest.pool(), self.backend.stored());
        let compacted = self.forest.compacted_pages();
        let native = pool.live() - pool.slab_pages() - compacted;
        let of = |format, pages| {
            let bytes = u64::from(pages) * shape.page_bytes();
            FormatBytes { format, pages, bytes, held_bytes: bytes }
        };
        let mut all = vec![of(KvFormat::Native, native)];
        if self.forest.directory().is_some() {
            all.push(of(KvFormat::Compacted, compacted));
        }
        let heads = u64::from(shape.layers) * u64::from(shape.kv_heads);
        all.extend(pool.slab_uses().filter_map(|(class, used)| {
            let format = KvFormat::from_code(class.key)?;
            let page = format.page_bytes(shape.page()) as u64 * heads;
            Some(FormatBytes {
                format,
                pages: used.pages,
                bytes: u64::from(used.pages) * page,
                held_bytes: u64::from(used.slabs * crate::cache::SLAB_PAGES) * shape.page_bytes(),
            })
        }));
        all
    }
}
