//! Why a prefix index refused.

use crate::tree::{ForestError, NodeKey};

/// Why a [`PrefixIndex`](super::PrefixIndex) refused. It is as it was before the call, and so is the forest.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// There is nothing to look for.
    #[error("tokens is empty: at least one id is needed")]
    NoTokens,
    /// Ids and tokens differ in number.
    #[error("tokens has {ids} ids, but the path to {node:?} holds {held} tokens")]
    Count {
        /// The end of the path.
        node: NodeKey,
        /// Ids given.
        ids: usize,
        /// Tokens from the root to the node's end.
        held: u64,
    },
    /// The path begins with other tokens than those given.
    #[error("tokens[{position}] is {id}, but the path to {node:?} was sealed with {held} there")]
    OtherTokens {
        /// The end of the path.
        node: NodeKey,
        /// Index into the ids given.
        position: usize,
        /// The id given.
        id: u32,
        /// The id that was sealed.
        held: u32,
    },
    /// The path was sealed under another salt.
    #[error("salt is {salt}, but the path to {node:?} was sealed under {held}")]
    OtherSalt {
        /// The end of the path.
        node: NodeKey,
        /// The salt given.
        salt: u64,
        /// The path's.
        held: u64,
    },
    /// The node is not in the index.
    #[error("{node:?} is not in the prefix index: it was never sealed, or has been evicted")]
    NotIndexed {
        /// The node.
        node: NodeKey,
    },
    /// The node is in the index, where tokens stay where they are.
    #[error("{node:?} is in the prefix index: it neither grows nor merges with what is below it")]
    Indexed {
        /// The node.
        node: NodeKey,
    },
    /// Somebody has pinned the node, or one below it.
    #[error("{node:?} is pinned: unpin it first")]
    Pinned {
        /// The pinned node.
        node: NodeKey,
    },
    /// Nobody has pinned the node.
    #[error("{node:?} has no pin to take away")]
    NotPinned {
        /// The node.
        node: NodeKey,
    },
    /// The budget holds no page.
    #[error("prefix_bytes is {bytes}, but a page takes {page_bytes} bytes; 0 keeps nothing")]
    BudgetBelowPage {
        /// Bytes given.
        bytes: u64,
        /// Bytes of a page, of all layers and KV heads.
        page_bytes: u64,
    },
    /// The forest refused.
    #[error(transparent)]
    Forest(#[from] ForestError),
}
