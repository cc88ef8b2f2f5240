//! What tree search asks of a language model.

use deft::tree::TokenForest;
use deft::{CacheError, NodeKey, PrefixStats};

use crate::grown::{Grown, GrownToken};
use crate::ranks::RankError;
use crate::select::{self, Select, Selected};

/// One token of a draft, to be verified together with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftToken {
    /// Index of the token before it within the draft, below its own; `None` right after the trunk.
    pub parent: Option<u32>,
    /// The token.
    pub token: u32,
}

/// Bytes of KV that attention has read since the model was made, all layers and KV heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// By the plans that ran: shared prefixes once.
    pub read: u64,
    /// What one query at a time would have read: shared prefixes once a query.
    pub per_query: u64,
}

/// A language model over a forest of token trees whose K and V it keeps.
///
/// A node is a run of tokens that were run through the model. Logits are those of the token that comes
/// next, `f32`, one row of [`TreeModel::vocabulary`] entries for each token asked about.
pub trait TreeModel {
    /// Entries of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Most tokens from a root to a leaf: the model's context, or its sliding window where that is less.
    fn context(&self) -> usize;

    /// The trees: lengths, parents, children, pages and the pool's counters.
    fn forest(&self) -> &TokenForest;

    /// What attention has read.
    fn traffic(&self) -> Traffic;

    /// What the model holds of prompts of the past and has saved by it; all zeros if it keeps none.
    fn prefix_stats(&self) -> PrefixStats {
        PrefixStats::default()
    }

    /// Gives up prompts of the past that nobody uses until `pages` pages are free, as far as there are such; the pages
    /// that are free.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    fn make_room(&mut self, pages: u32) -> Result<u32, ModelError> {
        let _ = pages;
        Ok(self.forest().pool().free())
    }

    /// Starts a tree with `tokens`, at least one; `logits` becomes the row after the last of them. What the model holds
    /// of a prompt that began alike is not run again ([`TreeModel::prefix_stats`]): then the node is a leaf below it,
    /// and pruning it leaves the prompt to later ones.
    ///
    /// # Errors
    /// [`ModelError`]; then there is no new tree.
    fn insert_prompt(
        &mut self,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<NodeKey, ModelError>;

    /// Gives `node` `n` more children, each empty, and seals it. Nothing is computed or copied.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError>;

    /// Puts `tokens[i]` at the end of `leaves[i]` and runs all of them in one pass; `logits` becomes
    /// `[leaves, vocabulary]`.
    ///
    /// # Errors
    /// [`ModelError`]; then no leaf has grown.
    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError>;

    /// As [`TreeModel::step`], but of each leaf only what `select` asks comes back: one request a leaf.
    ///
    /// The answers' definition is [`Select::answer`]; a model on a GPU chooses there, in f32.
    ///
    /// # Errors
    /// [`ModelError`]; then no leaf has grown.
    fn step_select(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        select::check(select, leaves.len(), self.vocabulary())?;
        let mut logits = Vec::new();
        self.step(leaves, tokens, &mut logits)?;
        Ok(select::answers(select, &logits, self.vocabulary()))
    }

    /// Puts a draft tree below `trunk` and runs all of it in one pass; `logits` becomes
    /// `[draft, vocabulary]`. [`TreeModel::accept`] ends the draft.
    ///
    /// # Errors
    /// [`ModelError`]; then there is no draft.
    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError>;

    /// As [`TreeModel::verify`], but of each token of the draft only what `select` asks comes back: one request a token.
    ///
    /// # Errors
    /// [`ModelError`]; then there is no draft.
    fn verify_select(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        select: &[Select],
    ) -> Result<(Vec<NodeKey>, Vec<Selected>), ModelError> {
        select::check(select, draft.len(), self.vocabulary())?;
        let mut logits = Vec::new();
        let keys = self.verify(trunk, draft, &mut logits)?;
        Ok((keys, select::answers(select, &logits, self.vocabulary())))
    }

    /// Ends the draft of `trunk`: tokens along `path` join the trunk, the rest is dropped. `path` starts
    /// at a child of the trunk, each entry is the parent of the next; it may be empty.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError>;

    /// Whether [`TreeModel::grow_draft`] and what belongs to it work.
    fn grows_drafts(&self) -> bool {
        false
    }

    /// Adds tokens to the draft of `trunk`, which begins with the first of them, and runs these tokens in one pass. Of all
    /// that may follow the `k` best come back, by score and log-probability together: the beams of the next step are
    /// among them. What no beam goes on from is taken by [`TreeModel::prune_draft`]; [`TreeModel::accept`] ends the draft.
    ///
    /// Tokens should come in the order of their parents, for attention reads the less the more neighbours have in common.
    ///
    /// # Errors
    /// [`ModelError`]; then no token was added.
    fn grow_draft(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        let _ = (trunk, grown, k);
        Err(ModelError::Unsupported { operation: "growing drafts" })
    }

    /// Takes `leaves`, nodes of drafts that nothing is below, and what nothing is below then, but no trunk; the pages that
    /// came free.
    ///
    /// # Errors
    /// [`ModelError`]; then nothing was taken.
    fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ModelError> {
        let _ = leaves;
        Err(ModelError::Unsupported { operation: "growing drafts" })
    }

    /// Moves the tokens of the draft of `trunk` together: see
    /// [`TokenForest::gather_draft`](deft::tree::TokenForest::gather_draft).
    ///
    /// # Errors
    /// [`ModelError`]; then the draft is as it was.
    fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), ModelError> {
        let _ = trunk;
        Err(ModelError::Unsupported { operation: "growing drafts" })
    }

    /// Makes one node of `node` and the only children below it; `node`'s key stays, theirs go. Nothing is
    /// computed: K and V move within the pages that the chain holds.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError>;

    /// Removes `node` and everything below it; the pages that came free.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError>;
}

/// Why a model did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The tree, its pages or attention.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The ranks that run the model together; it cannot be used any more.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// A token that the model does not have.
    #[error("token {token} is not below the vocabulary's size, {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Entries of the vocabulary.
        vocabulary: usize,
    },
    /// A path that would be longer than the model can attend to.
    #[error("a path of {tokens} tokens is longer than the context of {context}")]
    Context {
        /// Tokens from the root.
        tokens: u64,
        /// Most that there may be.
        context: usize,
    },
    /// A path that would be longer than the model's sliding window: what comes after is not computed here, for
    /// branches of a tree see it from different places.
    #[error("a path of {tokens} tokens is longer than the model's sliding window of {window}")]
    Window {
        /// Tokens from the root.
        tokens: u64,
        /// Tokens of the window.
        window: u32,
    },
    /// An argument without tokens.
    #[error("{argument} is empty: at least one token is needed")]
    Empty {
        /// Name of the argument.
        argument: &'static str,
    },
    /// More tokens in one pass than the model was made for.
    #[error("a pass of {rows} tokens; the model was made for {max_rows} (`max_rows`)")]
    Rows {
        /// Tokens of the pass.
        rows: usize,
        /// Most that there may be.
        max_rows: u32,
    },
    /// An option is out of range.
    #[error("{option} is {value}; it must be {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Something that this model does not do.
    #[error("this model does not do it: {operation}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
    },
    /// Arguments that belong together and differ in length.
    #[error("{leaves} leaves and {tokens} tokens: one token a leaf is needed")]
    Lengths {
        /// Leaves given.
        leaves: usize,
        /// Tokens given.
        tokens: usize,
    },
    /// There is not one [`Select`] for each row of a pass.
    #[error("{selects} requests for {rows} rows: one a row is needed")]
    Selects {
        /// Rows of the pass.
        rows: usize,
        /// Requests given.
        selects: usize,
    },
}
