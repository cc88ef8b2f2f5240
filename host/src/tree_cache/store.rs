//! Memory that comes as pages are taken and goes as they come free.

use kernels_gpu::abi::{PAGE_TOKENS, TokenMove};

use super::{CacheError, TreeCache};
use crate::cache::{PoolError, StoreBytes};
use crate::tree::{ForestError, TokenForest};

impl TreeCache {
    /// Gives the extents memory that keep it.
    pub(super) fn map_initial(&mut self) -> Result<(), CacheError> {
        while self.forest.pool().mapped_extents() < self.forest.pool().kept_extents() {
            self.map_one()?;
        }
        self.settle();
        Ok(())
    }

    /// What the pages take: those that nodes hold, all that have memory, and all there may be.
    pub fn store_bytes(&mut self) -> StoreBytes {
        let shape = self.backend.stored();
        let bytes = |pages: u32| u64::from(pages) * shape.page_bytes();
        let reserved = bytes(shape.pages);
        let memory = self.backend.elastic().map_or(reserved, |memory| memory.bytes());
        StoreBytes { held: bytes(self.forest.pool().live()), memory, reserved }
    }

    /// Moves pages together so that as little memory is in use as can be: for a cache with an
    /// [elastic store](crate::cache::Store::Elastic) whose prompts were pruned here and there. Returns the pages moved; with a
    /// fixed store 0. Pages of formats stay where they are. If a page is moved, batches made before are out of date.
    ///
    /// # Errors
    /// The device's; then nothing was moved.
    pub fn compact(&mut self) -> Result<u32, CacheError> {
        let pages = self.forest.pool().compaction();
        if pages.is_empty() {
            return Ok(0);
        }
        let tokens = pages.iter().flat_map(|&(from, to)| {
            (0..PAGE_TOKENS).map(move |token| TokenMove {
                from: from * PAGE_TOKENS + token,
                to: to * PAGE_TOKENS + token,
            })
        });
        self.backend.copy(&tokens.collect::<Vec<_>>())?;
        let count = pages.len() as u32;
        self.forest.relocate(&pages);
        let moved = self.move_page_scores(&pages);
        self.settle();
        moved?;
        Ok(count)
    }

    /// Runs `grow`; once more if it lacks pages that can be provided.
    pub(super) fn with_room<T>(
        &mut self,
        grow: impl Fn(&mut TokenForest) -> Result<T, ForestError>,
    ) -> Result<T, CacheError> {
        let mut grown = grow(&mut self.forest);
        if let Err(ForestError::Pool(PoolError::OutOfPages { wanted, .. })) = grown {
            self.provide(wanted)?;
            grown = grow(&mut self.forest);
        }
        self.settle();
        Ok(grown?)
    }

    /// Tries to have `pages` pages ready: by memory, then by evicting sealed prefixes that nobody uses.
    ///
    /// # Errors
    /// The device's, if it has refused memory and evicting was not enough.
    pub(super) fn provide(&mut self, pages: u64) -> Result<(), CacheError> {
        let Ok(pages) = u32::try_from(pages) else {
            return Ok(());
        };
        if pages > self.forest.pool().capacity() {
            return Ok(());
        }
        let memory = self.map_for(pages);
        self.prefix.make_room(&mut self.forest, pages)?;
        match self.forest.pool().ready() >= pages {
            true => Ok(()),
            false => memory,
        }
    }

    /// Gives extents memory until `pages` pages are ready or all extents have it.
    pub(super) fn map_for(&mut self, pages: u32) -> Result<(), CacheError> {
        while self.forest.pool().ready() < pages && self.map_one()? {}
        Ok(())
    }

    /// As [`Self::with_room`] for slabs, of which nothing sealed has to go: memory only.
    pub(super) fn with_slabs<T>(
        &mut self,
        take: impl Fn(&mut TokenForest) -> Result<T, ForestError>,
    ) -> Result<T, CacheError> {
        loop {
            match take(&mut self.forest) {
                Err(error @ ForestError::Pool(PoolError::OutOfSlabs { .. })) => {
                    // Where the device has no memory either, it is pages that are missing.
                    if !self.map_one().unwrap_or(false) {
                        return Err(error.into());
                    }
                }
                taken => return Ok(taken?),
            }
        }
    }

    /// Gives one more extent memory; `false` if all have it.
    fn map_one(&mut self) -> Result<bool, CacheError> {
        let extent = self.prepared.take().or_else(|| self.forest.pool().next_extent());
        let (Some(extent), Some(memory)) = (extent, self.backend.elastic()) else {
            return Ok(false);
        };
        memory.map(extent)?;
        self.forest.pool_mut().extent_mapped(extent);
        Ok(true)
    }

    /// Keeps one empty extent ahead, and gives back the memory of the others.
    pub(super) fn settle(&mut self) {
        let Some(memory) = self.backend.elastic() else {
            return;
        };
        let pool = self.forest.pool_mut();
        match self.prepared {
            None if !pool.has_empty_extent() => {
                self.prepared = pool.next_extent();
                self.prepared.into_iter().for_each(|extent| memory.prepare(extent));
            }
            // One has drained meanwhile. If this one was refused memory, it is asked for when pages are needed.
            Some(extent) if pool.has_empty_extent() => {
                self.prepared = None;
                if memory.map(extent).is_ok() {
                    pool.extent_mapped(extent);
                }
            }
            _ => {}
        }
        while let Some(extent) = pool.surplus_extent() {
            memory.unmap(extent);
            pool.extent_unmapped(extent);
        }
    }
}
