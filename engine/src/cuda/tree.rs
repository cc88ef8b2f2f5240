//! [`TreeModel`] for a model on a device.

use deft::NodeKey;
use deft::cuda::Event;
use deft::plan::Grouping;
use deft::tree::{DraftNode, TokenForest};
use deft::{Opened, PrefixStats, StepGraph, StepOptions};

use super::CudaModel;
use super::forward::{Pass, Run, Tail};
use super::model::on_gpu;
use super::probe::{Nobody, Observer};
use crate::prompt::{self, SALT};
use crate::select::{self, Select, Selected};
use crate::{DraftToken, Grown, GrownToken, ModelError, Traffic, TreeModel};

const LOGITS: Pass = Pass::whole(Tail::Logits);
pub(super) const LOGITS_OF_ONE: Pass = Pass::whole(Tail::LogitsOfOne);

impl TreeModel for CudaModel {
    fn vocabulary(&self) -> usize {
        self.config().vocabulary as usize
    }

    fn context(&self) -> usize {
        self.config().context as usize
    }

    fn forest(&self) -> &TokenForest {
        self.cache.forest()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn prefix_stats(&self) -> PrefixStats {
        self.cache.prefix_stats()
    }

    fn make_room(&mut self, pages: u32) -> Result<u32, ModelError> {
        Ok(self.cache.make_room(pages)?)
    }

    fn insert_prompt(
        &mut self,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<NodeKey, ModelError> {
        let root = self.run_prompt(tokens, LOGITS_OF_ONE)?;
        logits.clear();
        logits.resize(self.vocabulary(), 0.0);
        let buffer = &self.forward.buffers.logits;
        let read = self.settle().and_then(|()| Ok(buffer.read(0, logits, self.stream())?));
        let sealed = read.map_err(ModelError::from);
        let sealed = sealed.and_then(|()| Ok(self.cache.seal(root, tokens, SALT)?));
        if sealed.is_err() {
            self.cache.prune(root)?;
        }
        sealed
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError> {
        Ok(self.cache.fork(node, n)?)
    }

    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.check_pass(leaves.len(), tokens)?;
        self.grow(leaves)?;
        let run = self.run(Some(tokens), LOGITS, None);
        let run = run.and_then(|()| self.read_logits(logits));
        self.or_shrink(leaves, run)
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let nodes = self.run_verify(trunk, draft, LOGITS, None)?;
        if let Err(error) = self.read_logits(logits) {
            self.cache.accept(trunk, &[])?;
            return Err(error);
        }
        Ok(nodes)
    }

    fn step_select(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        self.check_pass(leaves.len(), tokens)?;
        select::check(select, leaves.len(), self.vocabulary())?;
        self.grow(leaves)?;
        let run = self.run(Some(tokens), self.ranking(select), None);
        let run = run.and_then(|()| self.answers(select));
        self.or_shrink(leaves, run)
    }

    fn verify_select(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        select: &[Select],
    ) -> Result<(Vec<NodeKey>, Vec<Selected>), ModelError> {
        select::check(select, draft.len(), self.vocabulary())?;
        let nodes = self.run_verify(trunk, draft, self.ranking(select), None)?;
        match self.answers(select) {
            Ok(selected) => Ok((nodes, selected)),
            Err(error) => {
                self.cache.accept(trunk, &[])?;
                Err(error)
            }
        }
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        Ok(self.cache.accept(trunk, path)?)
    }

    fn grows_drafts(&self) -> bool {
        true
    }

    fn grow_draft(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        self.run_grown(trunk, grown, k)
    }

    fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ModelError> {
        Ok(self.cache.prune_draft(leaves)?)
    }

    fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), ModelError> {
        Ok(self.cache.gather_draft(trunk)?)
    }

    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError> {
        Ok(self.cache.merge_chain(node)?)
    }

    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError> {
        Ok(self.cache.prune(node)?)
    }
}

impl CudaModel {
    /// Puts a draft into the forest and runs it; on an error there is none.
    pub(super) fn run_verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        pass: Pass,
        events: Option<(&Event, &Event)>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let tokens: Vec<u32> = draft.iter().map(|node| node.token).collect();
        if tokens.is_empty() {
            return Err(ModelError::Empty { argument: "draft" });
        }
        self.check_pass(tokens.len(), &tokens)?;
        let nodes: Vec<DraftNode> =
            draft.iter().map(|node| DraftNode { parent: node.parent, tokens: 1 }).collect();
        self.begin_step()?;
        let keys = self.cache.insert_draft(trunk, &nodes)?;
        let outcome = self
            .check_paths(&keys)
            .and_then(|()| self.plan(&keys))
            .and_then(|()| self.run(Some(&tokens), pass, events));
        if let Err(error) = outcome {
            self.cache.accept(trunk, &[])?;
            return Err(error);
        }
        Ok(keys)
    }

    pub(super) fn check_paths(&self, nodes: &[NodeKey]) -> Result<(), ModelError> {
        let mut nodes = nodes.iter();
        nodes.try_for_each(|&node| self.check_context(self.tokens_of(node)?))
    }

    /// Puts a prompt into the forest, below what is held of it, and runs the rest part by part; on an error there is
    /// none.
    pub(super) fn run_prompt(&mut self, tokens: &[u32], pass: Pass) -> Result<NodeKey, ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::Empty { argument: "tokens" });
        }
        self.check_tokens(tokens)?;
        self.check_context(tokens.len() as u64)?;
        let Opened { node: root, matched } = prompt::open(&mut self.cache, tokens)?;
        let tokens = &tokens[matched as usize..];
        let mut left = tokens.len();
        for part in tokens.chunks(self.options().prefill_rows as usize) {
            left -= part.len();
            self.retain.begin_pass(left);
            if let Err(error) = self.run_part(root, part, pass, &mut Nobody) {
                self.cache.prune(root)?;
                return Err(error);
            }
        }
        Ok(root)
    }

    /// Adds `tokens` to `root` and runs them; on an error the root is to be removed.
    pub(super) fn run_part(
        &mut self,
        root: NodeKey,
        tokens: &[u32],
        pass: Pass,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        self.forward.check()?;
        let pass = self.observing(pass);
        let rows = tokens.len() as u32;
        self.cache.set_grouping(Grouping::Flatten);
        let batch = self.cache.batch(&[(root, rows)])?;
        let stream = on_gpu(&self.cache).stream();
        let buffers = &mut self.forward.buffers;
        buffers.pick.upload(0, &[rows - 1], stream)?;
        buffers.inputs.set(tokens, batch.positions(), stream)?;
        let (forward, options) = (&self.forward, StepOptions::default());
        // Prompts are of any length: their parts are called, not captured.
        // SAFETY: as in `run`; buffers have room for `prefill_rows` rows.
        self.cache.capture_with(&mut StepGraph::new(), &batch, options, |step| unsafe {
            Run::new(forward, step, rows)?.enqueue(pass, observer)
        })?;
        self.count_prefill(&batch);
        Ok(())
    }
}
