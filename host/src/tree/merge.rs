//! Chains of only children, which become one node.

use kernels_gpu::abi::{PAGE_TOKENS, TokenMove};

use super::node::{Content, State, place};
use super::{ForestError, NodeKey, TokenForest};
use crate::cache::PageId;

/// A chain that is to become one node.
#[derive(Debug)]
pub(crate) struct Chain {
    /// The nodes that go, from the top down.
    below: Vec<NodeKey>,
    /// Pages of theirs that the node takes over.
    added: Vec<PageId>,
    /// Tokens that the node has then.
    grown: u32,
    /// Where K and V go.
    pub(crate) moves: Vec<TokenMove>,
}

impl TokenForest {
    /// Makes one node of `node` and the only children below it: their tokens join `node`, whose key stays,
    /// and their keys name nothing any more. The chain goes down as long as a node has one child; the
    /// last one's children become `node`'s, and `node` grows again if the last one did.
    ///
    /// Every fork starts pages of its own; this gives those back that a chain does not fill. It takes no page,
    /// so it works in a full pool. Returns the moves that bring K and V along, in the order in which they have
    /// to take place, as those of [`TokenForest::accept`] do; none if `node` has no only child, and
    /// then nothing has changed.
    ///
    /// ```
    /// use deft::{cache::PagePool, tree::TokenForest};
    ///
    /// let mut forest = TokenForest::new(PagePool::new(4)?);
    /// let top = forest.insert_root(10)?;
    /// let leaf = forest.fork(top, 1)?[0];
    /// forest.append(leaf, 3)?;
    /// assert_eq!(forest.pool().live(), 2);
    ///
    /// let moves = forest.merge_chain(top)?;
    /// assert_eq!((moves.len(), forest.length(top)?, forest.pool().live()), (3, 13, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Draft`], [`ForestError::DraftPending`] if a node of the
    /// chain carries a draft, or [`ForestError::Compacted`] if one below `node` is.
    pub fn merge_chain(&mut self, node: NodeKey) -> Result<Vec<TokenMove>, ForestError> {
        let chain = self.chain_moves(node)?;
        let moves = chain.moves.clone();
        self.chain_moved(node, chain);
        Ok(moves)
    }

    /// The moves of [`TokenForest::merge_chain`], which then is still to be done: by [`Self::chain_moved`], once K and
    /// V were moved.
    pub(crate) fn chain_moves(&self, node: NodeKey) -> Result<Chain, ForestError> {
        let below = self.only_children(node)?;
        let mut sources = Vec::new();
        let mut own = Vec::new();
        for &below in &below {
            self.check_whole(below)?;
            debug_assert!(self.nodes[below].coded.is_none(), "moves are of native pages");
            let pages = self.nodes[below].pages();
            sources.extend((0..self.length_of(below)).map(|token| place(pages, token)));
            own.extend_from_slice(pages);
        }
        let length = self.length_of(node);
        // Pages are the forest's, 64 tokens each and fewer than 2^25: the sum fits.
        let grown = length + sources.len() as u32;
        let added = grown.div_ceil(PAGE_TOKENS) - length.div_ceil(PAGE_TOKENS);
        own.truncate(added as usize);
        let mut pages = self.nodes[node].pages().to_vec();
        pages.extend_from_slice(&own);
        let moves = sources.iter().zip(length..).map(|(&from, position)| {
            let to = place(&pages, position);
            TokenMove { from, to }
        });
        let moves = moves.filter(|step| step.from != step.to).collect();
        Ok(Chain { below, added: own, grown, moves })
    }

    /// Merges the chain below `node` of which [`Self::chain_moves`] gave the moves; nothing else has happened since.
    pub(crate) fn chain_moved(&mut self, node: NodeKey, chain: Chain) {
        let Some(&last) = chain.below.last() else {
            return;
        };
        let new = self.state_of(last);
        for &page in &chain.added {
            self.pool.retain(page);
        }
        let record = &mut self.nodes[node];
        let slot = record.slot as usize;
        if let Content::Owned { pages, state } = &mut record.content {
            *state = new;
            pages.extend_from_slice(&chain.added);
        }
        self.tail_pages[slot] = record.tail_page();
        self.lengths[slot] = chain.grown;
        self.adopt_children(node, last);
        for below in chain.below {
            self.release_node(below);
        }
        self.changes.reshaped();
    }

    /// The nodes below `node`, each the only child of the one before.
    pub(super) fn only_children(&self, node: NodeKey) -> Result<Vec<NodeKey>, ForestError> {
        let mut chain = Vec::new();
        let mut next = node;
        loop {
            let record = self.node(next)?;
            match record.content {
                Content::Draft { .. } => return Err(ForestError::Draft { node: next }),
                Content::Owned { state: State::Drafted(_), .. } => {
                    return Err(ForestError::DraftPending { node: next });
                }
                Content::Owned { .. } => {}
            }
            match record.first_child {
                Some(child) if record.last_child == Some(child) => chain.push(child),
                _ => return Ok(chain),
            }
            next = chain[chain.len() - 1];
        }
    }

    /// The state of a node that is no draft.
    fn state_of(&self, node: NodeKey) -> State {
        match &self.nodes[node].content {
            Content::Owned { state, .. } => *state,
            Content::Draft { .. } => unreachable!("a chain has no draft nodes"),
        }
    }

    /// Makes the children of `from` those of `node`.
    fn adopt_children(&mut self, node: NodeKey, from: NodeKey) {
        let (first, last) = (self.nodes[from].first_child, self.nodes[from].last_child);
        let mut next = first;
        while let Some(child) = next {
            let child = &mut self.nodes[child];
            child.parent = Some(node);
            next = child.next;
        }
        let record = &mut self.nodes[node];
        (record.first_child, record.last_child) = (first, last);
    }
}
