//! Batches: new tokens of some nodes, a row each, and the plan of their attention.

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget};

use super::{CacheError, TreeCache};
use crate::plan::{Grouping, Patch, Plan, PlanUpdate, Planner};
use crate::tree::{ForestError, GrowthCursor, NodeKey, TokenForest};

/// Tokens of some nodes that go through a model together: a prompt or a part of one, the newest tokens of decoding
/// leaves, the nodes of drafts, in any mixture. It is good for every layer.
///
/// Each token is a row of `k`, `v`, `q`, `out` and `lse`, in the order in which [`TreeCache::batch`] was given the
/// nodes; several tokens of a node follow one another.
#[derive(Clone, Debug)]
pub struct Batch {
    cache: u64,
    grouping: Grouping,
    nodes: Vec<(NodeKey, u32)>,
    plan: Plan,
    cursor: GrowthCursor,
    /// Lengths of the nodes when the batch was made or advanced.
    lengths: Vec<u32>,
    /// Where each row's K and V go.
    targets: Vec<AppendTarget>,
    /// Each row's position: tokens before it on its path.
    positions: Vec<u32>,
}

impl Batch {
    /// The nodes, each with as many of its last tokens as have a row.
    pub fn nodes(&self) -> &[(NodeKey, u32)] {
        &self.nodes
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.targets.len()
    }
    /// Each row's position, tokens before it on its path: `[rows]`. What rotary embeddings of queries need.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }
    /// How attention is grouped.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }
    /// The plan as backends and kernels read it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Whether all its tokens can be written: none is in a page of another format.
    pub(super) fn check_native(&self, forest: &TokenForest) -> Result<(), ForestError> {
        for (&(node, tokens), &length) in self.nodes.iter().zip(&self.lengths) {
            forest.check_native(node, length - tokens..length)?;
        }
        Ok(())
    }
    pub(super) fn targets(&self) -> &[AppendTarget] {
        &self.targets
    }

    /// How many tokens each row sees, of the last `window` rows of each node; 0 of the others: `[rows]`.
    pub(super) fn visible(&self, window: u32) -> Vec<u32> {
        let left = self.nodes.iter().flat_map(|&(_, rows)| (0..rows).rev());
        let rows = self.positions.iter().zip(left);
        rows.map(|(&position, left)| if left < window { position.saturating_add(1) } else { 0 })
            .collect()
    }

    /// Looks up what follows from the nodes' lengths, which were checked.
    fn locate(&mut self, forest: &TokenForest) -> Result<(), ForestError> {
        self.lengths.clear();
        self.targets.clear();
        self.positions.clear();
        for &(node, tokens) in &self.nodes {
            let length = forest.length(node)?;
            self.lengths.push(length);
            if tokens == 1 && forest.grows(node)? {
                // By its counter: the word serves later steps too, as the kernels follow the counter.
                self.targets.push(APPEND_LIVE | forest.length_slot(node)?);
            } else {
                forest.append_targets(node, length - tokens..length, &mut self.targets)?;
            }
            // What does not fit is beyond any rotary table, and refused as such.
            let end = forest.context_length(node)?.min(u64::from(u32::MAX)) as u32;
            self.positions.extend(end - tokens..end);
        }
        Ok(())
    }

    /// The same after every node has grown by one token and nothing else has changed.
    fn move_on(&mut self) {
        self.lengths.iter_mut().for_each(|length| *length += 1);
        self.positions.iter_mut().for_each(|position| *position += 1);
    }
}

impl TreeCache {
    /// Adds `n` tokens to each `(node, n)` of `nodes`, or to none, and plans their attention: each new token sees its
    /// path up to itself. `(root, 100)` is a prompt of 100 tokens or the next part of one, `(leaf, 1)` a step of
    /// decoding. A draft's node does not grow, it has its tokens already: `n` of its last ones get a row. So any mixture
    /// goes through a model at once.
    ///
    /// Then, for each layer, come [`TreeCache::append`] and [`TreeCache::attend`].
    ///
    /// # Errors
    /// Those of [`TokenForest::extend`] for nodes that grow; those of [`TokenForest::view_tokens_into`]; the planner's.
    /// No node has grown then.
    pub fn batch(&mut self, nodes: &[(NodeKey, u32)]) -> Result<Batch, CacheError> {
        let grown = self.growing(nodes)?;
        let before = self.with_room(|forest| forest.grow_each(&grown))?;
        let batch = self.batch_held(nodes);
        if batch.is_err() {
            self.forest.undo_growth(&grown, before);
        }
        batch
    }

    /// As [`TreeCache::batch`] without new tokens: the last `n` tokens that each node holds.
    ///
    /// # Errors
    /// Those of [`TokenForest::view_tokens_into`] and the planner's.
    pub fn batch_held(&mut self, nodes: &[(NodeKey, u32)]) -> Result<Batch, CacheError> {
        let mut batch = Batch {
            cache: self.id,
            grouping: self.grouping,
            nodes: nodes.to_vec(),
            plan: Plan::empty(),
            cursor: self.forest.growth_cursor(),
            lengths: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
        };
        self.replan(&mut batch)?;
        Ok(batch)
    }

    /// Adds `n` tokens to each of the batch's nodes, or to none: the batch is then of those. The start of a decode step,
    /// or of a prompt's next part. In a step of one token a node the plan is kept or patched where it can be.
    ///
    /// # Errors
    /// [`CacheError::ForeignBatch`], those of [`TokenForest::extend`], the planner's. No node has grown then.
    pub fn advance(&mut self, batch: &mut Batch, n: u32) -> Result<PlanUpdate, CacheError> {
        self.check_ours(batch)?;
        let one_each = n == 1 && batch.nodes.iter().all(|&(_, tokens)| tokens == 1);
        let kept = one_each && self.check_fresh(batch).is_ok();
        let nodes: Vec<(NodeKey, u32)> = batch.nodes.iter().map(|&(node, _)| (node, n)).collect();
        let start = self.with_room(|forest| forest.grow_each(&nodes))?;
        if kept {
            match self.forest.growth_since(batch.cursor) {
                Some([]) => {
                    batch.move_on();
                    return Ok(PlanUpdate::Unchanged);
                }
                Some(growth) if batch.plan.patch(growth, &mut self.dirty) == Patch::Patched => {
                    batch.cursor = self.forest.growth_cursor();
                    batch.move_on();
                    return Ok(PlanUpdate::Patched);
                }
                _ => {}
            }
        }
        let before = std::mem::replace(&mut batch.nodes, nodes);
        if let Err(error) = self.replan(batch) {
            let grown = std::mem::replace(&mut batch.nodes, before);
            self.forest.undo_growth(&grown, start);
            return Err(error);
        }
        Ok(PlanUpdate::Replanned)
    }

    /// Plans the batch anew after its trees were forked or pruned, without new tokens.
    ///
    /// # Errors
    /// As [`TreeCache::batch_held`]; the batch is then as it was.
    pub fn refresh(&mut self, batch: &mut Batch) -> Result<(), CacheError> {
        self.check_ours(batch)?;
        self.replan(batch)
    }

    /// Plans the batch anew in another grouping.
    ///
    /// # Errors
    /// As [`TreeCache::refresh`].
    pub fn regroup(&mut self, batch: &mut Batch, grouping: Grouping) -> Result<(), CacheError> {
        self.check_ours(batch)?;
        let before = std::mem::replace(&mut batch.grouping, grouping);
        let replanned = self.replan(batch);
        if replanned.is_err() {
            batch.grouping = before;
        }
        replanned
    }

    /// Those of `nodes` that [`TreeCache::batch`] adds tokens to.
    fn growing(&self, nodes: &[(NodeKey, u32)]) -> Result<Vec<(NodeKey, u32)>, ForestError> {
        let mut growing = Vec::with_capacity(nodes.len());
        for &(node, tokens) in nodes {
            if !self.forest.is_draft(node)? {
                growing.push((node, tokens));
            }
        }
        Ok(growing)
    }

    fn check_ours(&self, batch: &Batch) -> Result<(), CacheError> {
        if batch.cache != self.id {
            return Err(CacheError::ForeignBatch);
        }
        Ok(())
    }

    /// Whether the forest is as the batch has it.
    pub(super) fn check_fresh(&self, batch: &Batch) -> Result<(), CacheError> {
        self.check_ours(batch)?;
        let stale = |change| Err(CacheError::StaleBatch { change });
        match self.forest.growth_since(batch.cursor) {
            None => return stale("nodes were added or removed, or sealed"),
            Some(growth) if batch.plan.reads_any(growth) => {
                return stale("one of its nodes grew into a new page");
            }
            Some(_) => {}
        }
        for (&(node, _), &length) in batch.nodes.iter().zip(&batch.lengths) {
            if self.forest.length(node)? != length {
                return stale("one of its nodes grew");
            }
        }
        Ok(())
    }

    /// Plans the batch's nodes from scratch; on an error the batch is as it was.
    fn replan(&mut self, batch: &mut Batch) -> Result<(), CacheError> {
        for &(node, tokens) in &batch.nodes {
            self.forest.check_held(node, tokens)?;
        }
        let of_grouping = |planner: &Planner| planner.config().grouping == batch.grouping;
        let at = match self.planners.iter().position(of_grouping) {
            Some(at) => at,
            None => {
                let mut config = self.backend.plan_config(batch.grouping, self.config.group_size());
                (self.settings)(&mut config);
                self.planners.push(Planner::new(config)?);
                self.planners.len() - 1
            }
        };
        self.view_scratch.set_tile(self.planners[at].config().tile_queries());
        self.forest.view_tokens_into(&batch.nodes, &mut self.view_scratch, &mut self.view)?;
        self.planners[at].plan_into(&self.view, &mut self.spare)?;
        std::mem::swap(&mut self.spare, &mut batch.plan);
        batch.cursor = self.forest.growth_cursor();
        Ok(batch.locate(&self.forest)?)
    }
}
