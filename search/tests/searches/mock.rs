//! A model without weights, for tests of searches and of what shows them.
//!
//! Its trees and pages are real. Each token lies in a page where K and V would lie, and logits are a hash of
//! the tokens read back from there, so a page that is lost, shared by mistake or moved wrongly changes them.

use std::error::Error;

use deft::abi::{PAGE_TOKENS, TokenMove};
use deft::cache::PagePool;
use deft::tree::TokenForest;
use deft::{CacheError, DraftNode, NodeKey};

use deft_engine::random::word;
use deft_engine::{
    DraftToken, Grown, GrownToken, ModelError, Select, TextCodec, Traffic, TreeModel,
};

/// Changes the logits that follow a path.
type Bias = Box<dyn Fn(&[u32], &mut [f32])>;

/// What a [`HashModel`] is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HashModelConfig {
    /// Tokens of the vocabulary, at least 1.
    pub(crate) vocabulary: usize,
    /// Most tokens of a path.
    pub(crate) context: usize,
    /// Pages of 64 tokens.
    pub(crate) pages: u32,
    /// Most rows of a pass, as a model on a GPU has.
    pub(crate) max_rows: usize,
    /// Last tokens of a path that the logits depend on. A small number gives text that repeats itself.
    pub(crate) memory: usize,
    /// Another seed, another model.
    pub(crate) seed: u64,
    /// Whether drafts grow.
    pub(crate) drafts: bool,
}

impl Default for HashModelConfig {
    /// The vocabulary of [`AsciiCodec`], 4,096 tokens of context, 256 pages; all tokens count.
    fn default() -> Self {
        Self {
            vocabulary: AsciiCodec::VOCABULARY,
            context: 4096,
            pages: 256,
            max_rows: usize::MAX,
            memory: usize::MAX,
            seed: 0,
            drafts: true,
        }
    }
}

/// A deterministic model whose logits lie between -4 and 4 and depend on the path's tokens alone.
pub(crate) struct HashModel {
    config: HashModelConfig,
    forest: TokenForest,
    /// The token at each place of each page; [`EMPTY`] where none was written.
    cells: Vec<u32>,
    traffic: Traffic,
    bias: Option<Bias>,
}

const EMPTY: u32 = u32::MAX;

/// Bytes that a token's K and V count for in [`Traffic`].
const TOKEN_BYTES: u64 = 4;

impl HashModel {
    /// A model without trees.
    ///
    /// # Errors
    /// [`ModelError::Empty`] for a vocabulary of 0; [`ModelError::Cache`] for a number of pages that a pool
    /// cannot have.
    pub(crate) fn new(config: HashModelConfig) -> Result<Self, ModelError> {
        if config.vocabulary == 0 {
            return Err(ModelError::Empty { argument: "vocabulary" });
        }
        let pool = PagePool::new(config.pages).map_err(CacheError::from)?;
        Ok(Self {
            config,
            forest: TokenForest::new(pool),
            cells: vec![EMPTY; config.pages as usize * PAGE_TOKENS as usize],
            traffic: Traffic::default(),
            bias: None,
        })
    }

    /// The same with `bias` over it, which gets a path and the logits after it, `[vocabulary]`.
    #[must_use]
    pub(crate) fn with_bias(mut self, bias: impl Fn(&[u32], &mut [f32]) + 'static) -> Self {
        self.bias = Some(Box::new(bias));
        self
    }

    /// The logits after `path`, without any tree: what a search is checked against.
    pub(crate) fn logits_after(&self, path: &[u32]) -> Vec<f32> {
        let recent = &path[path.len().saturating_sub(self.config.memory)..];
        let hash = recent
            .iter()
            .fold(word(self.config.seed, 0), |hash, &token| word(hash ^ u64::from(token), 0));
        let logit = |token: u64| {
            let bits = word(hash ^ (token << 32), 0) >> 40;
            bits as f32 / (1u32 << 21) as f32 - 4.0
        };
        let mut logits: Vec<f32> = (0..self.config.vocabulary as u64).map(logit).collect();
        if let Some(bias) = &self.bias {
            bias(path, &mut logits);
        }
        logits
    }

    /// The tokens from the root to the end of `node`, read from its pages.
    ///
    /// # Errors
    /// [`ModelError::Cache`] for a node that is not there.
    pub(crate) fn path(&self, node: NodeKey) -> Result<Vec<u32>, ModelError> {
        let mut nodes = vec![node];
        while let Some(parent) = forest(self.forest.parent(nodes[nodes.len() - 1]))? {
            nodes.push(parent);
        }
        let mut places = Vec::new();
        for &node in nodes.iter().rev() {
            let length = forest(self.forest.length(node))?;
            forest(self.forest.append_targets(node, 0..length, &mut places))?;
        }
        let tokens = places.iter().map(|&place| self.cells[place as usize]);
        let tokens: Vec<u32> = tokens.collect();
        assert!(!tokens.contains(&EMPTY), "a token was never written");
        Ok(tokens)
    }

    fn check_tokens(&self, tokens: impl IntoIterator<Item = u32>) -> Result<(), ModelError> {
        let vocabulary = self.config.vocabulary;
        for token in tokens {
            if token as usize >= vocabulary {
                return Err(ModelError::Token { token, vocabulary });
            }
        }
        Ok(())
    }

    fn check_context(&self, tokens: u64) -> Result<(), ModelError> {
        let context = self.config.context;
        if tokens > context as u64 {
            return Err(ModelError::Context { tokens, context });
        }
        Ok(())
    }

    fn check_rows(&self, rows: usize) -> Result<(), ModelError> {
        if rows <= self.config.max_rows {
            return Ok(());
        }
        let error =
            format!("a pass of {rows} tokens; the model was made for {}", self.config.max_rows);
        Err(CacheError::Device(error.into()).into())
    }

    /// Writes the last `tokens.len()` tokens of `node`.
    fn write(&mut self, node: NodeKey, tokens: &[u32]) -> Result<(), ModelError> {
        let end = forest(self.forest.length(node))?;
        let mut places = Vec::new();
        let begin = end - tokens.len() as u32;
        forest(self.forest.append_targets(node, begin..end, &mut places))?;
        for (&place, &token) in places.iter().zip(tokens) {
            self.cells[place as usize] = token;
        }
        Ok(())
    }

    fn run_moves(&mut self, moves: &[TokenMove]) {
        for step in moves {
            self.cells[step.to as usize] = self.cells[step.from as usize];
        }
    }

    /// Logits after each of `nodes`, and what reading the trees takes.
    fn read(&mut self, nodes: &[NodeKey], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        logits.clear();
        for &node in nodes {
            let path = self.path(node)?;
            self.traffic.per_query += TOKEN_BYTES * path.len() as u64;
            logits.extend(self.logits_after(&path));
        }
        let view = forest(self.forest.view(nodes))?;
        let tokens: u64 = view.runs.iter().map(|run| u64::from(run.tokens)).sum();
        self.traffic.read += TOKEN_BYTES * tokens;
        Ok(())
    }
}

impl TreeModel for HashModel {
    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn context(&self) -> usize {
        self.config.context
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
        if tokens.is_empty() {
            return Err(ModelError::Empty { argument: "tokens" });
        }
        self.check_tokens(tokens.iter().copied())?;
        self.check_context(tokens.len() as u64)?;
        let root = forest(self.forest.insert_root(tokens.len() as u32))?;
        self.write(root, tokens)?;
        self.read(&[root], logits)?;
        Ok(root)
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError> {
        forest(self.forest.fork(node, n))
    }

    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        if leaves.len() != tokens.len() {
            return Err(ModelError::Lengths { leaves: leaves.len(), tokens: tokens.len() });
        }
        self.check_rows(tokens.len())?;
        self.check_tokens(tokens.iter().copied())?;
        for &leaf in leaves {
            self.check_context(forest(self.forest.context_length(leaf))? + 1)?;
        }
        forest(self.forest.extend(leaves, 1))?;
        for (&leaf, &token) in leaves.iter().zip(tokens) {
            self.write(leaf, &[token])?;
        }
        self.read(leaves, logits)
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        self.check_rows(draft.len())?;
        self.check_tokens(draft.iter().map(|one| one.token))?;
        let mut depth = Vec::<u64>::new();
        for one in draft {
            let above = one.parent.and_then(|parent| depth.get(parent as usize));
            depth.push(above.copied().unwrap_or(0) + 1);
        }
        let deepest = depth.into_iter().max().unwrap_or(0);
        self.check_context(forest(self.forest.context_length(trunk))? + deepest)?;
        let nodes = draft.iter().map(|one| DraftNode { parent: one.parent, tokens: 1 });
        let nodes: Vec<DraftNode> = nodes.collect();
        let keys = forest(self.forest.insert_draft(trunk, &nodes))?;
        for (&key, one) in keys.iter().zip(draft) {
            self.write(key, &[one.token])?;
        }
        self.read(&keys, logits)?;
        Ok(keys)
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        let moves = forest(self.forest.accept(trunk, path))?;
        self.run_moves(&moves);
        Ok(())
    }

    fn grows_drafts(&self) -> bool {
        self.config.drafts
    }

    fn grow_draft(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        self.check_rows(grown.len())?;
        self.check_tokens(grown.iter().map(|one| one.token))?;
        for one in grown {
            self.check_context(forest(self.forest.context_length(one.parent))? + 1)?;
        }
        let parents: Vec<NodeKey> = grown.iter().map(|one| one.parent).collect();
        let keys = forest(self.forest.grow_draft(trunk, &parents))?;
        for (&key, one) in keys.iter().zip(grown) {
            self.write(key, &[one.token])?;
        }
        let mut logits = Vec::new();
        self.read(&keys, &mut logits)?;
        let top = Select::Top { k: k.min(self.config.vocabulary) };
        let rows = logits.chunks_exact(self.config.vocabulary).map(|row| top.answer(row));
        let rows: Vec<_> = rows.collect();
        Ok(Grown::of(keys, &rows, grown, k))
    }

    fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ModelError> {
        forest(self.forest.prune_draft(leaves))
    }

    fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), ModelError> {
        let moves = forest(self.forest.gather_draft(trunk))?;
        self.run_moves(&moves);
        Ok(())
    }

    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError> {
        let moves = forest(self.forest.merge_chain(node))?;
        self.run_moves(&moves);
        Ok(())
    }

    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError> {
        forest(self.forest.prune(node))
    }
}

fn forest<T>(result: Result<T, deft::tree::ForestError>) -> Result<T, ModelError> {
    Ok(result.map_err(CacheError::from)?)
}

/// Printable ASCII, one character a token: 0 ends a sequence, 1 is a line feed, the rest follows from the
/// space on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AsciiCodec;

impl AsciiCodec {
    /// Tokens there are.
    pub(crate) const VOCABULARY: usize = 97;

    /// The tokens of `text`; other characters become `?`.
    pub(crate) fn encode(self, text: &str) -> Vec<u32> {
        let token = |character| match character {
            '\n' => 1,
            ' '..='~' => character as u32 - 30,
            _ => '?' as u32 - 30,
        };
        text.chars().map(token).collect()
    }
}

impl TextCodec for AsciiCodec {
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        Ok(Self::encode(*self, text))
    }

    fn decode(&self, tokens: &[u32]) -> String {
        let character = |&token: &u32| match token {
            0 => '\u{fffd}',
            1 => '\n',
            _ => char::from_u32(token + 30).filter(char::is_ascii).unwrap_or('\u{fffd}'),
        };
        tokens.iter().map(character).collect()
    }

    fn is_end(&self, token: u32) -> bool {
        token == 0
    }
}
