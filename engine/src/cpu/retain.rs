//! Upkeep of a model on the CPU.

use deft::NodeKey;
use deft::retain::{Compaction, Maintained};

use super::CpuModel;
use crate::tree_model::ModelError;

impl CpuModel {
    /// What upkeep has done so far; `None` for a model that keeps all.
    pub fn maintained(&self) -> Option<Maintained> {
        self.retain.done()
    }

    /// Drops what the model's policy finds minor, if the cache holds more than its budget
    /// ([`TreeCache::maintain`](deft::TreeCache::maintain)); nothing of a model that keeps all.
    ///
    /// # Errors
    /// The cache's.
    pub fn maintain(&mut self) -> Result<Maintained, ModelError> {
        let done = self.retain.maintain(&mut self.cache)?;
        if done.nodes > 0 {
            self.step = None;
        }
        Ok(done)
    }

    /// Compacts a node as the model's policy chooses where it may keep the part `keep` of its rows, however little
    /// that frees; what it chose, or `None` if nothing.
    ///
    /// # Errors
    /// The cache's.
    pub fn compact(&mut self, node: NodeKey, keep: f64) -> Result<Option<Compaction>, ModelError> {
        let Some(retain) = &mut self.retain.retain else {
            return Ok(None);
        };
        let chosen = self.cache.select(&mut retain.policy, node, keep)?;
        if let Some(chosen) = &chosen {
            self.cache.compact_node(node, chosen)?;
            self.step = None;
        }
        Ok(chosen)
    }

    /// Upkeep, if it is due; then a step or a draft begins.
    pub(super) fn begin_step(&mut self) -> Result<(), ModelError> {
        if self.retain.begin_step(&mut self.cache)? {
            self.step = None;
        }
        Ok(())
    }
}
