//! Prompts in files, so that they survive the process.

use std::path::Path;

use deft::{Demoted, NodeKey, RestoreFrom, Restored, TreeCache};

use super::CpuModel;
use super::forward::Wanted;
use super::params::Params;
use super::tree::CHUNK;
use crate::ModelError;
use crate::prompt::{self, SALT};
use crate::ranks::Shard;

impl CpuModel {
    /// Writes the prompt that gave `leaf` to the file at `path`: its ids, and K and V of all layers. The model has to keep
    /// prompts ([`CpuOptions::prefix_bytes`](super::CpuOptions::prefix_bytes)), and nothing has been added to `leaf`.
    ///
    /// # Errors
    /// Those of [`TreeCache::save`](deft::TreeCache::save).
    pub fn save_prompt(&mut self, leaf: NodeKey, path: &Path) -> Result<(), ModelError> {
        Ok(self.cache.save(leaf, path)?)
    }

    /// Reads a prompt that [`CpuModel::save_prompt`] wrote for the same model; prompts that begin alike run only what is
    /// new from then on. Returns an empty leaf below it, which keeps it from being evicted until it is pruned.
    ///
    /// # Errors
    /// Those of [`TreeCache::load`](deft::TreeCache::load): a file that is torn, changed or another model's.
    pub fn load_prompt(&mut self, path: &Path) -> Result<NodeKey, ModelError> {
        Ok(self.cache.load(path, SALT)?)
    }

    /// Moves a prompt that was kept to the host's memory, or copies it where something is below it still: of `leaf`, which
    /// [`TreeModel::insert_prompt`](crate::TreeModel::insert_prompt) gave and to which nothing was added; it is pruned.
    ///
    /// # Errors
    /// Those of [`TreeCache::demote`](deft::TreeCache::demote), as for a leaf whose prompt was not kept.
    pub fn demote_prompt(&mut self, leaf: NodeKey) -> Result<Demoted, ModelError> {
        prompt::demote(&mut self.cache, leaf)
    }

    /// Brings a prompt back that was saved or demoted, in less time than loading or computing it alone: passes from its
    /// front while the rest is loaded from its back ([`TreeCache::restore`](deft::TreeCache::restore)). What follows it runs only what
    /// is new. Its leaf keeps it from being evicted until it is pruned.
    ///
    /// # Errors
    /// Those of [`TreeCache::restore`](deft::TreeCache::restore); [`ModelError::Option`] on one of several ranks.
    pub fn restore_prompt<'a>(
        &mut self,
        from: impl Into<RestoreFrom<'a>>,
    ) -> Result<Restored, ModelError> {
        prompt::check_restore(&self.shard)?;
        self.step = None;
        TreeCache::restore_for(
            self,
            |model| &mut model.cache,
            from,
            SALT,
            CHUNK as u32,
            |model, leaf, ids| {
                model.check_tokens("ids", ids)?;
                model.fill(leaf, ids, Wanted::None, &mut Vec::new())
            },
        )
    }
}

/// A number for a rank's part of a model; of its weights the first row of the embedding and the last norm stand for all.
pub(super) fn identity(shard: &Shard, params: &Params) -> u64 {
    let mut sample = params.final_norm.clone();
    params.embedding.push_row(0, &mut sample);
    prompt::identity(shard, sample.into_iter())
}
