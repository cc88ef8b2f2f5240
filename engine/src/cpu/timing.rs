//! How long attention takes by itself.

use std::time::{Duration, Instant};

use deft::{CacheError, Grouping, NodeKey};

use super::CpuModel;

impl CpuModel {
    /// Time of attention in all layers, for a query at the end of each of `leaves`, planned by `grouping`: the
    /// fastest of three runs. Planning is not part of it. Trees stay as they are.
    ///
    /// # Errors
    /// [`CacheError`], for leaves that cannot be planned.
    pub fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, CacheError> {
        let ones: Vec<(NodeKey, u32)> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let mut batch = self.cache.batch_held(&ones)?;
        self.cache.regroup(&mut batch, grouping)?;
        let width = self.config.q_width() as usize;
        // The last pass's queries as far as they go: time does not depend on their values.
        let mut q = self.scratch.queries().to_vec();
        q.resize(leaves.len() * width, 0.0);
        let mut out = vec![0.0; q.len()];
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let started = Instant::now();
            for layer in 0..self.config.layers {
                self.cache.attend(layer, &batch, &q, &mut out)?;
            }
            fastest = fastest.min(started.elapsed());
        }
        Ok(fastest)
    }
}
