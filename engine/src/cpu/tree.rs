//! Trees: what search asks for.

use deft::tree::TokenForest;
use deft::{CacheError, DraftNode, NodeKey, TreePlan};

use super::forward::Wanted;
use super::{CpuModel, PAGE_TOKENS};
use crate::traffic::{path_bytes, plan_bytes};
use crate::tree_model::{DraftToken, ModelError, Traffic, TreeModel};

/// Tokens of a prompt that go through the model at once: whole pages, so that a page is written once.
const CHUNK: usize = 128;
/// Bytes of an element of K or V.
const ELEMENT_BYTES: u32 = size_of::<f32>() as u32;

impl TreeModel for CpuModel {
    fn vocabulary(&self) -> usize {
        self.config.vocabulary as usize
    }

    fn context(&self) -> usize {
        self.config.context as usize
    }

    fn forest(&self) -> &TokenForest {
        self.cache.forest()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn insert_prompt(
        &mut self,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<NodeKey, ModelError> {
        self.check_tokens("tokens", tokens)?;
        self.check_context(tokens.len() as u64)?;
        let pages = tokens.len().div_ceil(PAGE_TOKENS as usize) as u64;
        let pool = self.cache.forest().pool();
        pool.check_free(pages)
            .map_err(|error| CacheError::Forest(error.into()))?;
        let root = self.cache.insert_root(0)?;
        let filled = self.fill(root, tokens, logits);
        if filled.is_err() {
            self.cache.prune(root)?;
        }
        filled.map(|()| root)
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
        if leaves.len() != tokens.len() {
            let (leaves, tokens) = (leaves.len(), tokens.len());
            return Err(ModelError::Lengths { leaves, tokens });
        }
        self.check_tokens("leaves", tokens)?;
        for &leaf in leaves {
            self.check_context(self.path_length(leaf)? + 1)?;
        }
        let kept = self.plan.take();
        let kept = kept.filter(|plan| plan.leaves() == leaves && plan.grouping() == self.grouping);
        // Planned before anything grows: what cannot be planned is refused here.
        let mut plan = match kept {
            Some(plan) => plan,
            None => self.cache.plan(leaves, self.grouping)?,
        };
        self.cache.step(&mut plan)?;
        let run = self.forward(tokens, &plan, Wanted::All, logits);
        if let Err(error) = run.and_then(|()| self.count(&plan)) {
            self.cache.shrink(leaves, 1)?;
            return Err(error.into());
        }
        self.plan = Some(plan);
        Ok(())
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let tokens: Vec<u32> = draft.iter().map(|token| token.token).collect();
        self.check_tokens("draft", &tokens)?;
        let nodes: Vec<DraftNode> = draft.iter().map(|token| node(token.parent)).collect();
        let keys = self.cache.insert_draft(trunk, &nodes)?;
        let verified = self.run_draft(&keys, &tokens, logits);
        if verified.is_err() {
            self.cache.accept(trunk, &[])?;
        }
        verified.map(|()| keys)
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        Ok(self.cache.accept(trunk, path)?)
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
    fn check_tokens(&self, argument: &'static str, tokens: &[u32]) -> Result<(), ModelError> {
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
        if tokens > context as u64 {
            return Err(ModelError::Context { tokens, context });
        }
        Ok(())
    }

    fn path_length(&self, node: NodeKey) -> Result<u64, CacheError> {
        Ok(self.cache.forest().context_length(node)?)
    }

    /// Puts a prompt into an empty root, chunk by chunk: each as a draft of one branch, whose queries see
    /// the tokens before them and no others, and which then joins the root.
    fn fill(
        &mut self,
        root: NodeKey,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let mut chunks = tokens.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            let parents = (0..chunk.len() as u32).map(|at| at.checked_sub(1));
            let nodes: Vec<DraftNode> = parents.map(node).collect();
            let path = self.cache.insert_draft(root, &nodes)?;
            let plan = self.cache.plan(&path, self.grouping)?;
            let last = chunks.peek().is_none();
            let wanted = if last { Wanted::Last } else { Wanted::None };
            self.forward(chunk, &plan, wanted, logits)?;
            let read = self.bytes_read(&plan);
            self.traffic.read += read;
            self.traffic.per_query += read;
            self.cache.accept(root, &path)?;
        }
        Ok(())
    }

    fn run_draft(
        &mut self,
        keys: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        for &key in keys {
            self.check_context(self.path_length(key)?)?;
        }
        let plan = self.cache.plan(keys, self.grouping)?;
        self.forward(tokens, &plan, Wanted::All, logits)?;
        Ok(self.count(&plan)?)
    }

    /// Adds what a pass by `plan` has read.
    fn count(&mut self, plan: &TreePlan) -> Result<(), CacheError> {
        self.traffic.read += self.bytes_read(plan);
        for &leaf in plan.leaves() {
            let forest = self.cache.forest();
            self.traffic.per_query += path_bytes(forest, leaf, &self.config, ELEMENT_BYTES)?;
        }
        Ok(())
    }

    /// Bytes of K and V that a pass by `plan` reads, all layers.
    fn bytes_read(&self, plan: &TreePlan) -> u64 {
        let lengths = self.cache.forest().lengths();
        plan_bytes(plan.plan(), &self.config, ELEMENT_BYTES, lengths)
    }
}
