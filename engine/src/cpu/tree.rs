//! Trees: what search asks for.

use deft::tree::TokenForest;
use deft::{Batch, CacheError, DraftNode, NodeKey, Opened, PrefixStats};

use super::CpuModel;
use super::forward::Wanted;
use crate::grown::{Grown, GrownToken};
use crate::prompt::{self, SALT};
use crate::select::{self, Select, Selected};
use crate::traffic::{path_bytes, plan_bytes};
use crate::tree_model::{DraftToken, ModelError, Traffic, TreeModel};

/// Tokens of a prompt that go through the model at once.
pub(super) const CHUNK: usize = 128;
/// Bytes of an element of K or V.
const ELEMENT_BYTES: u32 = size_of::<f32>() as u32;

impl TreeModel for CpuModel {
    fn vocabulary(&self) -> usize {
        self.config.vocabulary as usize
    }

    fn context(&self) -> usize {
        let window = self.config.variant.window.unwrap_or(u32::MAX);
        self.config.context.min(window) as usize
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
        self.check_tokens("tokens", tokens)?;
        self.check_context(tokens.len() as u64)?;
        let Opened { node, matched } = prompt::open(&mut self.cache, tokens)?;
        let run = self.fill(node, &tokens[matched as usize..], Wanted::Last, logits);
        let sealed = run.and_then(|()| Ok(self.cache.seal(node, tokens, SALT)?));
        if sealed.is_err() {
            self.cache.prune(node)?;
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
        self.step_by(leaves, tokens, |model, batch| {
            model.forward(tokens, batch, Wanted::All, logits)
        })
    }

    fn step_select(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        select::check(select, leaves.len(), self.vocabulary())?;
        self.step_by(leaves, tokens, |model, batch| model.forward_select(tokens, batch, select))
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let run = |model: &mut Self, tokens: &[u32], batch: &Batch| {
            model.forward(tokens, batch, Wanted::All, logits)
        };
        Ok(self.verify_by(trunk, draft, run)?.0)
    }

    fn verify_select(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        select: &[Select],
    ) -> Result<(Vec<NodeKey>, Vec<Selected>), ModelError> {
        select::check(select, draft.len(), self.vocabulary())?;
        self.verify_by(trunk, draft, |model, tokens, batch| {
            model.forward_select(tokens, batch, select)
        })
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
        let vocabulary = self.vocabulary();
        crate::grown::check(grown, k)?;
        let tokens: Vec<u32> = grown.iter().map(|one| one.token).collect();
        self.check_tokens("grown", &tokens)?;
        self.begin_step()?;
        let parents: Vec<NodeKey> = grown.iter().map(|one| one.parent).collect();
        let nodes = self.cache.grow_draft(trunk, &parents)?;
        let top = vec![Select::Top { k: k.min(vocabulary) }; nodes.len()];
        match self.run_draft(&nodes, |model, batch| model.forward_select(&tokens, batch, &top)) {
            Ok(rows) => Ok(Grown::of(nodes, &rows, grown, k)),
            Err(error) => {
                for node in nodes {
                    self.cache.prune(node)?;
                }
                Err(error)
            }
        }
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

fn node(parent: Option<u32>) -> DraftNode {
    DraftNode { parent, tokens: 1 }
}

impl CpuModel {
    /// Puts a token at the end of each leaf and has `run` run them; on an error no leaf has grown.
    fn step_by<T>(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        run: impl FnOnce(&mut Self, &Batch) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        if leaves.len() != tokens.len() {
            let (leaves, tokens) = (leaves.len(), tokens.len());
            return Err(ModelError::Lengths { leaves, tokens });
        }
        self.check_tokens("leaves", tokens)?;
        for &leaf in leaves {
            self.check_context(self.path_length(leaf)? + 1)?;
        }
        self.begin_step()?;
        let ones = || leaves.iter().map(|&leaf| (leaf, 1));
        let kept = self.step.take();
        let batch = match kept.filter(|batch| batch.nodes().iter().copied().eq(ones())) {
            Some(mut batch) => {
                self.cache.advance(&mut batch, 1)?;
                batch
            }
            None => self.cache.batch(&ones().collect::<Vec<_>>())?,
        };
        let outcome = run(self, &batch);
        match outcome.and_then(|found| self.count(&batch).map(|()| found).map_err(Into::into)) {
            Ok(found) => {
                self.step = Some(batch);
                Ok(found)
            }
            Err(error) => {
                self.cache.shrink(leaves, 1)?;
                Err(error)
            }
        }
    }

    /// Puts a draft below `trunk` and has `run` run it; on an error there is none.
    fn verify_by<T>(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        run: impl FnOnce(&mut Self, &[u32], &Batch) -> Result<T, ModelError>,
    ) -> Result<(Vec<NodeKey>, T), ModelError> {
        let tokens: Vec<u32> = draft.iter().map(|token| token.token).collect();
        self.check_tokens("draft", &tokens)?;
        let nodes: Vec<DraftNode> = draft.iter().map(|token| node(token.parent)).collect();
        self.begin_step()?;
        let keys = self.cache.insert_draft(trunk, &nodes)?;
        match self.run_draft(&keys, |model, batch| run(model, &tokens, batch)) {
            Ok(found) => Ok((keys, found)),
            Err(error) => {
                self.cache.accept(trunk, &[])?;
                Err(error)
            }
        }
    }

    pub(super) fn check_tokens(
        &self,
        argument: &'static str,
        tokens: &[u32],
    ) -> Result<(), ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::Empty { argument });
        }
        let vocabulary = self.vocabulary();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(ModelError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    fn check_context(&self, tokens: u64) -> Result<(), ModelError> {
        let context = self.context();
        if tokens <= context as u64 {
            return Ok(());
        }
        Err(match self.config.variant.window {
            Some(window) if window as usize == context => ModelError::Window { tokens, window },
            _ => ModelError::Context { tokens, context },
        })
    }

    pub(super) fn path_length(&self, node: NodeKey) -> Result<u64, CacheError> {
        Ok(self.cache.forest().context_length(node)?)
    }

    /// Puts the rest of a prompt into a leaf, chunk by chunk; of the last chunk logits as they are wanted.
    pub(super) fn fill(
        &mut self,
        leaf: NodeKey,
        tokens: &[u32],
        of_last: Wanted,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let mut left = tokens.len();
        let mut chunks = tokens.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            left -= chunk.len();
            self.retain.begin_pass(left);
            let batch = self.cache.batch(&[(leaf, chunk.len() as u32)])?;
            let last = chunks.peek().is_none();
            let wanted = if last { of_last } else { Wanted::None };
            self.forward(chunk, &batch, wanted, logits)?;
            let read = self.bytes_read(&batch);
            self.traffic.read += read;
            self.traffic.per_query += read;
        }
        Ok(())
    }

    fn run_draft<T>(
        &mut self,
        keys: &[NodeKey],
        run: impl FnOnce(&mut Self, &Batch) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        for &key in keys {
            self.check_context(self.path_length(key)?)?;
        }
        let ones: Vec<(NodeKey, u32)> = keys.iter().map(|&key| (key, 1)).collect();
        let batch = self.cache.batch(&ones)?;
        let found = run(self, &batch)?;
        self.count(&batch)?;
        Ok(found)
    }

    /// Adds what a pass of `batch` has read.
    fn count(&mut self, batch: &Batch) -> Result<(), CacheError> {
        self.traffic.read += self.bytes_read(batch);
        let leaves = batch.nodes().iter().map(|&(leaf, _)| leaf);
        let forest = self.cache.forest();
        self.traffic.per_query += path_bytes(forest, leaves, self.config(), ELEMENT_BYTES)?;
        Ok(())
    }

    /// Bytes of K and V that a pass of `batch` reads, all layers.
    fn bytes_read(&self, batch: &Batch) -> u64 {
        let lengths = self.cache.forest().lengths();
        plan_bytes(batch.plan(), self.config(), ELEMENT_BYTES, lengths)
    }
}
