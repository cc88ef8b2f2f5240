//! What a node is made of.

use kernels_gpu::abi::PAGE_TOKENS;

use super::NodeKey;
use super::compact::Compacted;
use super::seal::Coded;
use crate::cache::PageId;

slotmap::new_key_type! {
    pub(super) struct TreeKey;
    pub(super) struct BlockKey;
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Index of the node's length and tail page.
    pub(super) slot: u32,
    pub(super) tree: TreeKey,
    pub(super) parent: Option<NodeKey>,
    pub(super) first_child: Option<NodeKey>,
    pub(super) last_child: Option<NodeKey>,
    pub(super) previous: Option<NodeKey>,
    pub(super) next: Option<NodeKey>,
    pub(super) content: Content,
    /// The first of its own pages, if they are not native.
    pub(super) coded: Option<Coded>,
    /// What they are, if they are compacted: then they are [`kernels_gpu::abi::NONE`] in the list of pages.
    pub(super) compacted: Option<Box<Compacted>>,
}

impl Node {
    /// The number of its residue, if it has one.
    pub(super) fn residue(&self) -> Option<u32> {
        self.compacted.as_ref().and_then(|compacted| compacted.residue)
    }

    /// Pages that it owns; none of a draft's.
    pub(super) fn pages(&self) -> &[PageId] {
        match &self.content {
            Content::Owned { pages, .. } => pages,
            Content::Draft { .. } => &[],
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Whole pages, the last one partial: token `t` is in page `t / 64`.
    Owned { pages: Vec<PageId>, state: State },
    /// Tokens `begin..begin + length` of a draft block. A trunk's path does not change while it carries one, so `above`,
    /// the tokens of the path to it, stays.
    Draft { block: BlockKey, begin: u32, above: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Growing,
    /// May grow by accepting from the draft block.
    Drafted(BlockKey),
    /// Has been forked.
    Sealed,
}

#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) root: NodeKey,
}

/// Draft nodes that share pages.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The node that carries the draft.
    pub(super) trunk: NodeKey,
    /// Page of tokens `64 p..64 p + 64`; [`kernels_gpu::abi::NONE`] once no node has a token there.
    pub(super) pages: Vec<PageId>,
    /// Draft nodes left.
    pub(super) nodes: u32,
    /// Their tokens.
    pub(super) held: u32,
    /// Tokens the block was made for, those of nodes that are gone included.
    pub(super) tokens: u32,
    /// Nodes were added after it was made: in a view it is a run for each row tile.
    pub(super) grown: bool,
}

/// `page * 64 + token` of the token at `position` of a run of pages.
pub(super) fn place(pages: &[PageId], position: u32) -> u32 {
    pages[(position / PAGE_TOKENS) as usize] * PAGE_TOKENS + position % PAGE_TOKENS
}
