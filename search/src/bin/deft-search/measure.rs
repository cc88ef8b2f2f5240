//! What attention costs with shared prefixes and without, measured while a search runs.

use std::time::{Duration, Instant};

use deft::tree::TokenForest;
use deft::{Grouping, NodeKey, PrefixStats};
use deft_engine::{
    CpuModel, DraftToken, Grown, GrownToken, ModelError, Ranked, Select, Selected, Traffic,
    TreeModel,
};

/// Of so many passes one is measured.
const EVERY: u64 = 2;

/// A model of which attention can be timed by itself.
pub(crate) trait Timed: TreeModel {
    /// Time of attention in all layers for a query at each of `leaves`, planned by `grouping`.
    fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError>;
}

impl Timed for CpuModel {
    fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError> {
        Ok(self.time_attention(leaves, grouping)?)
    }
}

/// Of rank 0: the others wait.
impl<M: Timed> Timed for Ranked<M> {
    fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError> {
        self.model_mut().time_attention(leaves, grouping)
    }
}

#[cfg(feature = "cuda")]
impl Timed for deft_engine::cuda::CudaModel {
    fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError> {
        self.time_attention(leaves, grouping)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttentionTime {
    /// Passes measured.
    pub(crate) passes: u64,
    /// Shared prefixes read once, all measured passes together.
    pub(crate) shared: Duration,
    /// One query at a time.
    pub(crate) per_query: Duration,
}

/// A model that measures every second pass after it: attention of the same tree, planned to share prefixes and
/// planned a query at a time.
pub(crate) struct Measured<'a> {
    model: &'a mut dyn Timed,
    passes: u64,
    pub(crate) attention: AttentionTime,
    /// What measuring took, which is no part of the search.
    pub(crate) overhead: Duration,
}

impl<'a> Measured<'a> {
    pub(crate) fn new(model: &'a mut dyn Timed) -> Self {
        Self { model, passes: 0, attention: AttentionTime::default(), overhead: Duration::ZERO }
    }

    fn measure(&mut self, leaves: &[NodeKey]) -> Result<(), ModelError> {
        self.passes += 1;
        if !(self.passes - 1).is_multiple_of(EVERY) {
            return Ok(());
        }
        let started = Instant::now();
        self.attention.shared += self.model.time_attention(leaves, Grouping::Flatten)?;
        self.attention.per_query += self.model.time_attention(leaves, Grouping::PerQuery)?;
        self.attention.passes += 1;
        self.overhead += started.elapsed();
        Ok(())
    }
}

impl TreeModel for Measured<'_> {
    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn forest(&self) -> &TokenForest {
        self.model.forest()
    }

    fn traffic(&self) -> Traffic {
        self.model.traffic()
    }

    fn prefix_stats(&self) -> PrefixStats {
        self.model.prefix_stats()
    }

    fn make_room(&mut self, pages: u32) -> Result<u32, ModelError> {
        self.model.make_room(pages)
    }

    fn insert_prompt(
        &mut self,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<NodeKey, ModelError> {
        self.model.insert_prompt(tokens, logits)
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError> {
        self.model.fork(node, n)
    }

    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.model.step(leaves, tokens, logits)?;
        self.measure(leaves)
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let nodes = self.model.verify(trunk, draft, logits)?;
        self.measure(&nodes)?;
        Ok(nodes)
    }

    fn step_select(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        let selected = self.model.step_select(leaves, tokens, select)?;
        self.measure(leaves)?;
        Ok(selected)
    }

    fn verify_select(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        select: &[Select],
    ) -> Result<(Vec<NodeKey>, Vec<Selected>), ModelError> {
        let (nodes, selected) = self.model.verify_select(trunk, draft, select)?;
        self.measure(&nodes)?;
        Ok((nodes, selected))
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        self.model.accept(trunk, path)
    }

    fn grows_drafts(&self) -> bool {
        self.model.grows_drafts()
    }

    fn grow_draft(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        let step = self.model.grow_draft(trunk, grown, k)?;
        self.measure(&step.nodes)?;
        Ok(step)
    }

    fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ModelError> {
        self.model.prune_draft(leaves)
    }

    fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), ModelError> {
        self.model.gather_draft(trunk)
    }

    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError> {
        self.model.merge_chain(node)
    }

    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError> {
        self.model.prune(node)
    }
}
