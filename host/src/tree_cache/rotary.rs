//! Appends that rotate keys by their tokens' positions.

use std::ops::Range;

use super::{CacheError, TreeCache, TreePlan, counters};
use crate::attention::{RotaryTable, Rotation};
use crate::cache::KvElement;
use crate::tree::{ForestError, NodeKey, TokenForest};

impl TreeCache {
    /// As [`TreeCache::append`], and rotates each row of `k` by its token's position on its way: the
    /// number of tokens before it, on its leaf's path. `v` and queries are not rotated; for those there
    /// is [`RotaryTable::rotate`].
    ///
    /// # Errors
    /// Those of [`TreeCache::append`] and
    /// [`Backend::append_rotated`](crate::attention::Backend::append_rotated).
    pub fn append_rotated<T: KvElement>(
        &mut self,
        layer: u32,
        plan: &TreePlan,
        k: &[T],
        v: &[T],
        table: &RotaryTable,
    ) -> Result<(), CacheError> {
        self.check_fresh(plan)?;
        plan.check_targets(&self.forest)?;
        self.positions.clear();
        for &leaf in &plan.leaves {
            let last = self.forest.context_length(leaf)? - 1;
            self.positions.push(position(last));
        }
        let rotation = Rotation {
            table,
            positions: &self.positions,
        };
        let (counters, k, v) = (counters(&self.forest), T::elements(k), T::elements(v));
        let backend = &mut self.backend;
        Ok(backend.append_rotated(layer, &plan.targets, counters, k, v, rotation)?)
    }

    /// As [`TreeCache::append_tokens`], and rotates each row of `k` as [`TreeCache::append_rotated`] does.
    ///
    /// # Errors
    /// Those of [`TreeCache::append_tokens`] and
    /// [`Backend::append_rotated`](crate::attention::Backend::append_rotated).
    pub fn append_tokens_rotated<T: KvElement>(
        &mut self,
        layer: u32,
        node: NodeKey,
        tokens: Range<u32>,
        k: &[T],
        v: &[T],
        table: &RotaryTable,
    ) -> Result<(), CacheError> {
        self.targets.clear();
        self.forest
            .append_targets(node, tokens.clone(), &mut self.targets)?;
        let before = tokens_before(&self.forest, node)?;
        self.positions.clear();
        let positions = tokens.map(|token| position(before + u64::from(token)));
        self.positions.extend(positions);
        let rotation = Rotation {
            table,
            positions: &self.positions,
        };
        let (counters, k, v) = (counters(&self.forest), T::elements(k), T::elements(v));
        let backend = &mut self.backend;
        Ok(backend.append_rotated(layer, &self.targets, counters, k, v, rotation)?)
    }
}

/// Tokens of the node's ancestors.
fn tokens_before(forest: &TokenForest, node: NodeKey) -> Result<u64, ForestError> {
    Ok(forest.context_length(node)? - u64::from(forest.length(node)?))
}

/// As tables are indexed; what does not fit is beyond any table, and refused as such.
fn position(tokens_before: u64) -> u32 {
    u32::try_from(tokens_before).unwrap_or(u32::MAX)
}
