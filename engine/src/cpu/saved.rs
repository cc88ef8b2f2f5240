//! Prompts in files, so that they survive the process.

use std::path::Path;

use deft::NodeKey;

use super::params::Params;
use super::{CpuModel, tree::SALT};
use crate::ModelError;
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
}

/// A number for a model's shape, the rank that has this part of it, its rotation and its weights, of which the first row of the embedding and the last norm
/// stand for all. FNV-1a.
pub(super) fn identity(shard: &Shard, params: &Params) -> u64 {
    let rank = match shard.ranks() {
        1 => String::new(),
        ranks => format!("{} of {ranks}", shard.rank()),
    };
    let shape = format!("{:?}{rank}", shard.whole()).into_bytes();
    let mut weights = params.final_norm.clone();
    params.embedding.push_row(0, &mut weights);
    let weights = weights.into_iter();
    let weights = weights.flat_map(|weight| weight.to_bits().to_le_bytes());
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    shape.into_iter().chain(weights).fold(0xcbf2_9ce4_8422_2325, mix)
}
