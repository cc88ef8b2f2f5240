//! [`TreeModel`] for a model on a device.

use deft::NodeKey;
use deft::abi::{PAGE_TOKENS, TokenMove};
use deft::cuda::Event;
use deft::tree::{DraftNode, ForestError, TokenForest};

use super::CudaModel;
use super::forward::{Pass, Tail};
use super::probe::{Nobody, Observer};
use crate::{DraftToken, ModelError, Traffic, TreeModel};

const LOGITS: Pass = Pass { tail: Tail::Logits, attention: true };
const LOGITS_OF_ONE: Pass = Pass { tail: Tail::LogitsOfOne, attention: true };

impl TreeModel for CudaModel {
    fn vocabulary(&self) -> usize {
        self.config().vocabulary as usize
    }

    fn context(&self) -> usize {
        self.config().context as usize
    }

    fn forest(&self) -> &TokenForest {
        &self.forest
    }

    fn traffic(&self) -> Traffic {
        self.traffic
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
        if let Err(error) = buffer.read(0, logits, self.stream()) {
            self.forest.remove_tree(root)?;
            return Err(error.into());
        }
        Ok(root)
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError> {
        Ok(self.forest.fork(node, n)?)
    }

    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.check_pass(leaves.len(), tokens)?;
        self.grow(leaves)?;
        let run = self.run_grown(leaves, Some(tokens), LOGITS, None);
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
            self.forest.accept(trunk, &[])?;
            return Err(error);
        }
        Ok(nodes)
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        let moves = self.forest.accept(trunk, path)?;
        self.run_moves(&moves)
    }

    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError> {
        let moves = self.forest.merge_chain(node)?;
        self.run_moves(&moves)
    }

    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError> {
        Ok(self.forest.prune(node)?)
    }
}

impl CudaModel {
    /// Moves K and V as the forest says, in its order: as many at a time as the buffer holds.
    fn run_moves(&mut self, moves: &[TokenMove]) -> Result<(), ModelError> {
        let buffer = &self.forward.buffers.moves;
        for part in moves.chunks(buffer.len()) {
            buffer.upload(0, part, self.stream())?;
            let (at, count) = (buffer.pointer(), part.len() as u32);
            // SAFETY: the forest's places lie within the cache that was made as large as its pool; the buffer is the
            // model's; all work is on one stream, so a part's moves end before the next ones are uploaded.
            unsafe { self.cache.copy(at, count, self.stream().raw()) }?;
        }
        Ok(())
    }

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
        let keys = self.forest.insert_draft(trunk, &nodes)?;
        let outcome =
            self.check_paths(&keys).and_then(|()| self.run_draft(&keys, &tokens, pass, events));
        if let Err(error) = outcome {
            self.forest.accept(trunk, &[])?;
            return Err(error);
        }
        Ok(keys)
    }

    fn check_paths(&self, nodes: &[NodeKey]) -> Result<(), ModelError> {
        let mut nodes = nodes.iter();
        nodes.try_for_each(|&node| self.check_context(self.tokens_of(node)?))
    }

    /// Puts a prompt into the forest and runs it part by part; on an error there is none.
    pub(super) fn run_prompt(&mut self, tokens: &[u32], pass: Pass) -> Result<NodeKey, ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::Empty { argument: "tokens" });
        }
        self.check_tokens(tokens)?;
        self.check_context(tokens.len() as u64)?;
        let pages = tokens.len().div_ceil(PAGE_TOKENS as usize) as u64;
        let room = self.forest.pool().check_free(pages);
        room.map_err(ForestError::from)?;
        let root = self.forest.insert_root(0)?;
        for part in tokens.chunks(self.options().prefill_rows as usize) {
            if let Err(error) = self.run_part(root, part, pass, &mut Nobody) {
                self.forest.remove_tree(root)?;
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
        self.forest.extend(&[root], tokens.len() as u32)?;
        let last = [tokens.len() as u32 - 1];
        self.forward.buffers.pick.upload(0, &last, self.stream())?;
        self.run_prefill(root, tokens, pass, observer)
    }
}
