//! Why a forest refused.

use super::{NodeKey, TokenForest};
use crate::cache::PoolError;
use crate::format::KvFormat;

/// Why a [`TokenForest`] refused. The forest is as it was before the call.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForestError {
    /// The key names no node: it was pruned or merged, or belongs to another forest.
    #[error(
        "{node:?} is not a node of this forest: it was pruned or merged, or belongs to another forest"
    )]
    UnknownNode {
        /// The key given.
        node: NodeKey,
    },
    /// The same node was given twice.
    #[error("{node:?} is listed twice, the second time at index {index}")]
    DuplicateNode {
        /// The node.
        node: NodeKey,
        /// Where it came again.
        index: usize,
    },
    /// A count or a list that must not be empty is.
    #[error("{argument} is empty or 0")]
    Empty {
        /// The argument's name.
        argument: &'static str,
    },
    /// A forked node cannot grow any more, nor carry a draft.
    #[error("{node:?} has been forked: only its children grow")]
    Sealed {
        /// The node.
        node: NodeKey,
    },
    /// A draft node neither grows nor forks.
    #[error("{node:?} is a draft: accept it first")]
    Draft {
        /// The node.
        node: NodeKey,
    },
    /// The node carries a draft block; accept or drop it first.
    #[error("{node:?} carries a draft: accept or prune that first")]
    DraftPending {
        /// The node.
        node: NodeKey,
    },
    /// The node carries no draft block.
    #[error("{node:?} carries no draft")]
    NoDraft {
        /// The node.
        node: NodeKey,
    },
    /// The path's entry is no draft child of the entry before it (of the trunk, for the first).
    #[error("path[{index}], {node:?}, is not a draft child of the entry before it")]
    NotAPath {
        /// Index into the path.
        index: usize,
        /// The node there.
        node: NodeKey,
    },
    /// A draft grows from its trunk or a node of its own.
    #[error("parents[{index}], {node:?}, is neither {trunk:?} nor a node of its draft")]
    NotInDraft {
        /// Index into the parents.
        index: usize,
        /// The node there.
        node: NodeKey,
        /// The node that carries the draft.
        trunk: NodeKey,
    },
    /// Only what nothing hangs from is taken from a draft by itself.
    #[error("leaves[{index}], {node:?}, is not a draft's node without children")]
    NotADraftLeaf {
        /// Index into the leaves.
        index: usize,
        /// The node there.
        node: NodeKey,
    },
    /// A growing draft has a limit.
    #[error(
        "the draft would have {tokens} tokens since it was moved together last, the limit is {}",
        TokenForest::MAX_GROWN_TOKENS
    )]
    DraftTooLarge {
        /// Tokens of all draft nodes, those that are gone included.
        tokens: u64,
    },
    /// A draft node's parent has to come before it.
    #[error("draft[{index}] has parent {parent}, which does not precede it")]
    DraftOrder {
        /// Index of the draft node.
        index: usize,
        /// The parent given.
        parent: u32,
    },
    /// A draft node holds at least one token.
    #[error("draft[{index}] has 0 tokens")]
    EmptyDraftNode {
        /// Index of the draft node.
        index: usize,
    },
    /// A draft block has a limit.
    #[error("the draft has {tokens} tokens, the limit is {}", TokenForest::MAX_DRAFT_TOKENS)]
    DraftTooLong {
        /// Tokens of all draft nodes.
        tokens: u64,
    },
    /// A node's length does not fit 32 bits.
    #[error(
        "{node:?} holds {length} tokens and cannot take {added} more: the limit is {}",
        u32::MAX
    )]
    LengthOverflow {
        /// The node.
        node: NodeKey,
        /// Tokens it holds.
        length: u32,
        /// Tokens it was to take.
        added: u32,
    },
    /// The forest has a limit.
    #[error("{added} nodes wanted beside {held}, the limit is {}", TokenForest::MAX_NODES)]
    TooManyNodes {
        /// Nodes to add.
        added: usize,
        /// Nodes held.
        held: usize,
    },
    /// A view has a limit: a segment packs its queries in 16 bits.
    #[error("{queries} queries, the limit is {}", TokenForest::MAX_QUERIES)]
    TooManyQueries {
        /// Queries asked for.
        queries: usize,
    },
    /// The token range is not within the node.
    #[error("tokens {begin}..{end} are not within {node:?}, which holds {length}")]
    TokenRange {
        /// The node.
        node: NodeKey,
        /// First token asked for.
        begin: u32,
        /// One past the last token asked for.
        end: u32,
        /// Tokens that the node holds.
        length: u32,
    },
    /// The node has no last token to write.
    #[error("{node:?} holds no token: append to it first")]
    EmptyNode {
        /// The node.
        node: NodeKey,
    },
    /// The node's pages are of another format than the native one and the one asked for.
    #[error("{node:?} has pages in {format}: seal it as native first")]
    OtherFormat {
        /// The node.
        node: NodeKey,
        /// The format of its first pages.
        format: KvFormat,
    },
    /// Tokens in pages of another format than the native one are neither written nor taken away.
    #[error("the first {tokens} tokens of {node:?} are kept in {format}: seal it as native first")]
    InFormat {
        /// The node.
        node: NodeKey,
        /// How many of its tokens are.
        tokens: u32,
        /// The format of their pages.
        format: KvFormat,
    },
    /// Of a compacted node's first tokens fewer rows are left: they are not read one by one, written, moved or cut.
    #[error(
        "the first {tokens} tokens of {node:?} are compacted: their keys and values are not there one by one"
    )]
    Compacted {
        /// The node.
        node: NodeKey,
        /// How many of its tokens are.
        tokens: u32,
    },
    /// The page pool refused.
    #[error(transparent)]
    Pool(#[from] PoolError),
}
