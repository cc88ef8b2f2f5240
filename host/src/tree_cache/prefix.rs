//! Prompts that begin alike: found by token ids, computed once.

use super::{CacheError, TreeCache};
use crate::prefix::{Opened, PrefixStats};
use crate::tree::NodeKey;

impl TreeCache {
    /// A leaf for the sequence `tokens` below the longest beginning of it that was sealed under `salt`, with less than a
    /// page copied, or none of a page that is kept in a smaller format. What is left, `tokens[matched..]`, goes through a model by [`TreeCache::batch`]; to have logits
    /// after the last token open all but that one. In the end the caller prunes the leaf, or what
    /// [`TreeCache::seal`] gives for it; the sealed prefix stays until its pages are needed.
    ///
    /// Different salts never meet: one for each tenant, model or anything else that K and V depend on.
    ///
    /// ```
    /// use deft::{DType, Device, Kv, TreeCache};
    ///
    /// let mut cache = TreeCache::builder(&Device::cpu())
    ///     .layers(1).heads(2, 1, 64).dtype(DType::F32).capacity_bytes(1 << 20).build()?;
    /// let mut ask = |question: u32| -> Result<u32, deft::CacheError> {
    ///     let prompt: Vec<u32> = (0..200).chain([question]).collect();
    ///     let opened = cache.open(&prompt, 0)?;
    ///     let rest = prompt.len() as u32 - opened.matched;
    ///     let batch = cache.batch(&[(opened.node, rest)])?;
    ///     let kv = vec![1.0_f32; rest as usize * 64]; // the model's
    ///     cache.append(0, &batch, Kv::new(&kv, &kv))?;
    ///     let leaf = cache.seal(opened.node, &prompt, 0)?;
    ///     cache.prune(leaf)?; // after the answer
    ///     Ok(rest)
    /// };
    /// assert_eq!((ask(1000)?, ask(2000)?), (201, 1));
    /// # Ok::<(), deft::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`PrefixIndex::open`](crate::prefix::PrefixIndex::open), or the device's.
    pub fn open(&mut self, tokens: &[u32], salt: u64) -> Result<Opened, CacheError> {
        // For tokens that are copied; without a page none is.
        let _ = self.map_for(1);
        let (opened, moves) = self.prefix.open(&mut self.forest, tokens, salt)?;
        self.settle();
        if moves.is_empty() {
            return Ok(opened);
        }
        let copied = self.backend.copy(&moves);
        if copied.is_err() {
            self.forest.prune(opened.node)?;
        }
        Ok(copied.map(|()| opened)?)
    }

    /// Enters `leaf` in the prefix index, once K and V of all its tokens and layers are appended: `tokens` are the ids
    /// of its whole path. Returns the leaf to go on from, an empty child of the sealed node; where the index cannot
    /// keep it (see [`CacheBuilder::prefix_bytes`](crate::CacheBuilder::prefix_bytes)) that is `leaf` itself.
    ///
    /// This is about token ids; how K and V are stored is [`TreeCache::seal_as`]'s. With
    /// [`CacheBuilder::sealed_format`](crate::CacheBuilder::sealed_format) the sealed node goes into that format, as a forked one does.
    ///
    /// # Errors
    /// Those of [`PrefixIndex::seal`](crate::prefix::PrefixIndex::seal), or the device's.
    pub fn seal(
        &mut self,
        leaf: NodeKey,
        tokens: &[u32],
        salt: u64,
    ) -> Result<NodeKey, CacheError> {
        let below = self.prefix.seal(&mut self.forest, leaf, tokens, salt)?;
        self.settle();
        match self.forest.parent(below)? {
            Some(sealed) if below != leaf => self.seal_forked(sealed)?,
            _ => {}
        }
        Ok(below)
    }

    /// Keeps a sealed node, and all above it, whatever room is needed.
    ///
    /// # Errors
    /// Those of [`PrefixIndex::pin`](crate::prefix::PrefixIndex::pin).
    pub fn pin(&mut self, node: NodeKey) -> Result<(), CacheError> {
        Ok(self.prefix.pin(node)?)
    }

    /// Takes back a [`TreeCache::pin`].
    ///
    /// # Errors
    /// Those of [`PrefixIndex::unpin`](crate::prefix::PrefixIndex::unpin).
    pub fn unpin(&mut self, node: NodeKey) -> Result<(), CacheError> {
        Ok(self.prefix.unpin(node)?)
    }

    /// What the prefix index holds and has saved.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.prefix.stats()
    }

    /// Has `pages` pages ready, as far as that can be: an elastic store gets memory, then sealed prefixes that nobody uses
    /// are evicted. Returns the pages that are ready. Batches do so by themselves.
    ///
    /// # Errors
    /// The device's, where memory was refused and nothing could be evicted for it.
    pub fn make_room(&mut self, pages: u32) -> Result<u32, CacheError> {
        self.provide(u64::from(pages))?;
        Ok(self.forest.pool().ready())
    }

    /// Evicts every sealed prefix that nobody uses.
    ///
    /// # Errors
    /// Those of [`PrefixIndex::clear`](crate::prefix::PrefixIndex::clear).
    pub fn clear_prefixes(&mut self) -> Result<(), CacheError> {
        let cleared = self.prefix.clear(&mut self.forest);
        self.settle();
        Ok(cleared?)
    }
}
