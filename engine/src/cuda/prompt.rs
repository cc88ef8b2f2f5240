//! Prompts of the past: kept, demoted, and brought back.

use deft::abi::PAGE_TOKENS;
use deft::cache::DType;
use deft::cuda::Stream;
use deft::{Demoted, KvElement, NodeKey, RestoreFrom, Restored, TreeCache, bf16, f16};

use super::probe::Nobody;
use super::tree::LOGITS_OF_ONE;
use super::{CudaModel, CudaModelError, CudaWeights};
use crate::ModelError;
use crate::prompt::{self, SALT};

impl CudaModel {
    /// As [`CpuModel::save_prompt`](crate::CpuModel::save_prompt); the model has to keep prompts
    /// ([`CudaOptions::prefix_bytes`](super::CudaOptions::prefix_bytes)).
    ///
    /// # Errors
    /// Those of [`TreeCache::save`].
    pub fn save_prompt(&mut self, leaf: NodeKey, path: &std::path::Path) -> Result<(), ModelError> {
        Ok(self.cache.save(leaf, path)?)
    }

    /// As [`CpuModel::demote_prompt`](crate::CpuModel::demote_prompt), to pinned memory.
    ///
    /// # Errors
    /// Those of [`TreeCache::demote`], as for a leaf whose prompt was not kept.
    pub fn demote_prompt(&mut self, leaf: NodeKey) -> Result<Demoted, ModelError> {
        prompt::demote(&mut self.cache, leaf)
    }

    /// Brings a prompt back by loading alone.
    ///
    /// # Errors
    /// Those of [`TreeCache::promote`].
    pub fn promote_prompt<'a>(
        &mut self,
        from: impl Into<RestoreFrom<'a>>,
    ) -> Result<Restored, ModelError> {
        Ok(self.cache.promote(from, SALT)?)
    }

    /// Forgets the prompts of the past that nobody uses.
    ///
    /// # Errors
    /// Those of [`TreeCache::clear_prefixes`].
    pub fn clear_prompts(&mut self) -> Result<(), ModelError> {
        Ok(self.cache.clear_prefixes()?)
    }

    /// As [`CpuModel::restore_prompt`](crate::CpuModel::restore_prompt): passes on the model's stream, while a thread
    /// loads beside them.
    ///
    /// # Errors
    /// Those of [`TreeCache::restore`].
    pub fn restore_prompt<'a>(
        &mut self,
        from: impl Into<RestoreFrom<'a>>,
    ) -> Result<Restored, ModelError> {
        prompt::check_restore(self.forward.weights.shard())?;
        self.batch = None;
        let rows = self.options().prefill_rows;
        let part = (rows - rows % PAGE_TOKENS).max(PAGE_TOKENS);
        TreeCache::restore_for(
            self,
            |model| &mut model.cache,
            from,
            SALT,
            part,
            |model, leaf, ids| {
                model.check_tokens(ids)?;
                for ids in ids.chunks(rows as usize) {
                    model.run_part(leaf, ids, LOGITS_OF_ONE, &mut Nobody)?;
                }
                // So that a part is claimed when the one before is there.
                Ok(model.stream().synchronize().map_err(CudaModelError::from)?)
            },
        )
    }
}

impl CudaWeights {
    /// A number for the model; of its weights the first row of the embedding and the last norm stand for all.
    pub(super) fn identity(&self) -> Result<u64, CudaModelError> {
        let hidden = self.config().hidden as usize;
        let (mut norm, mut row) = (vec![0.0; hidden], vec![0u16; hidden]);
        let stream = Stream::new(self.final_norm.device())?;
        self.final_norm.read(0, &mut norm, &stream)?;
        self.embedding.read(0, &mut row, &stream)?;
        let mut wide = vec![0.0; hidden];
        match self.dtype() {
            DType::F16 => f16::widen(bytemuck::cast_slice(&row), &mut wide),
            _ => bf16::widen(bytemuck::cast_slice(&row), &mut wide),
        }
        Ok(prompt::identity(self.shard(), norm.into_iter().chain(wide)))
    }
}
