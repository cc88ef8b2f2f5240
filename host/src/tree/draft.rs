//! Draft trees: many tiny nodes that share pages, of which one path is accepted.

use kernels_gpu::abi::{NONE, PAGE_TOKENS, TokenMove};

use super::node::{Block, BlockKey, Content, State, place};
use super::{ForestError, NodeKey, TokenForest};
use crate::cache::PageId;

/// One node of a draft to insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftNode {
    /// Index of the parent within the draft, below the node's own; `None` right below the trunk.
    pub parent: Option<u32>,
    /// Tokens of the node, 1 or more.
    pub tokens: u32,
}

impl TokenForest {
    /// Puts a draft tree below `trunk`; returns a key for each of `draft`.
    ///
    /// The tokens lie one after another, in the order given, 64 to a page: a *block*. A trunk carries
    /// one draft at a time and neither grows nor forks meanwhile; draft nodes do neither. Their K and V
    /// go where [`TokenForest::append_targets`] says.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Empty`] for an empty draft, [`ForestError::Sealed`]
    /// for a trunk that was forked, [`ForestError::Draft`] for one that is a draft itself,
    /// [`ForestError::DraftPending`] for one that carries one, [`ForestError::DraftOrder`],
    /// [`ForestError::EmptyDraftNode`], [`ForestError::DraftTooLong`],
    /// [`ForestError::TooManyNodes`], or out of pages ([`ForestError::Pool`]).
    pub fn insert_draft(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftNode],
    ) -> Result<Vec<NodeKey>, ForestError> {
        self.check_growing(trunk)?;
        let tokens = check_draft(draft)?;
        self.check_room(draft.len())?;
        let pages = self.pool.allocate_many(tokens.div_ceil(PAGE_TOKENS))?;
        let (tree, above) = (self.nodes[trunk].tree, self.path_tokens(trunk));
        let block = self.blocks.insert(Block {
            trunk,
            pages: pages.clone(),
            nodes: draft.len() as u32,
            held: tokens,
            tokens,
            grown: false,
        });
        self.set_state(trunk, State::Drafted(block));
        let mut keys: Vec<NodeKey> = Vec::with_capacity(draft.len());
        let mut begin = 0;
        for node in draft {
            let parent = node.parent.map(|parent| keys[parent as usize]);
            let above = parent.map_or(above, |parent| self.path_tokens(parent));
            let content = Content::Draft { block, begin, above };
            let key = self.create_node(tree, Some(parent.unwrap_or(trunk)), content);
            keys.push(key);
            let end = begin + node.tokens;
            let held = (begin / PAGE_TOKENS) as usize..end.div_ceil(PAGE_TOKENS) as usize;
            for &page in &pages[held.clone()] {
                self.pool.retain(page);
            }
            let slot = self.nodes[key].slot as usize;
            self.lengths[slot] = node.tokens;
            self.tail_pages[slot] = pages[held.end - 1];
            begin = end;
        }
        // From here on the pages are the nodes': each goes with the last node that has a token there.
        for page in pages {
            self.pool.release(page);
        }
        self.changes.reshaped();
        Ok(keys)
    }

    /// Ends the draft of `trunk`: the tokens along `path` join the trunk, everything else of the draft
    /// is dropped. An empty path drops the draft and keeps nothing.
    ///
    /// `path` starts at a child of the trunk, and each entry is the parent of the next. Returns the
    /// moves that bring K and V of the path to the trunk's tail, in the order in which they have to take
    /// place, before anything else is written to a page of the pool: the draft's pages are free
    /// when this returns, and the next append may take them.
    ///
    /// As long as the pool has pages, sources and targets are apart. In a full pool the trunk grows
    /// into the draft's own pages, so accepting never runs out of pages, and a target may be the source
    /// of an *earlier* move, never of a later one. Whoever runs the moves one after the other is right in
    /// either case; so is a kernel whose threads each own a dim (of a layer and KV head) and walk the
    /// list, without any barrier. Running them all at once is not.
    ///
    /// ```
    /// use deft::{cache::PagePool, tree::{DraftNode, TokenForest}};
    ///
    /// let mut forest = TokenForest::new(PagePool::new(8)?);
    /// let trunk = forest.insert_root(100)?;
    /// let draft = [None, Some(0), Some(0), Some(2)].map(|parent| DraftNode { parent, tokens: 1 });
    /// let nodes = forest.insert_draft(trunk, &draft)?;
    /// let view = forest.view(&nodes)?;
    /// assert_eq!(view.masks, [0b0001, 0b0011, 0b0101, 0b1101]);
    ///
    /// let moves = forest.accept(trunk, &[nodes[0], nodes[2]])?;
    /// assert_eq!((moves.len(), forest.length(trunk)?), (2, 102));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::NoDraft`], [`ForestError::Draft`] if the trunk is a
    /// draft node itself, [`ForestError::NotAPath`], or [`ForestError::LengthOverflow`].
    pub fn accept(
        &mut self,
        trunk: NodeKey,
        path: &[NodeKey],
    ) -> Result<Vec<TokenMove>, ForestError> {
        let moves = self.accept_moves(trunk, path)?;
        self.accept_moved(trunk, path);
        Ok(moves)
    }

    /// The moves of [`TokenForest::accept`], which then is still to be done: by [`Self::accept_moved`], once K and V
    /// were moved.
    pub(crate) fn accept_moves(
        &self,
        trunk: NodeKey,
        path: &[NodeKey],
    ) -> Result<Vec<TokenMove>, ForestError> {
        let block = self.check_accept(trunk, path)?;
        let sources = self.draft_places(block, path);
        let added = sources.len() as u32;
        let length = self.length_of(trunk);
        if length.checked_add(added).is_none() {
            return Err(ForestError::LengthOverflow { node: trunk, length, added });
        }
        let mut pages = self.nodes[trunk].pages().to_vec();
        pages.extend(self.pages_for_draft(block, pages_between(length, length + added)));
        let moves = sources.into_iter().zip(length..).map(|(from, position)| {
            let to = place(&pages, position);
            TokenMove { from, to }
        });
        Ok(moves.filter(|step| step.from != step.to).collect())
    }

    /// Accepts a path of which [`Self::accept_moves`] gave the moves; nothing else has happened since.
    pub(crate) fn accept_moved(&mut self, trunk: NodeKey, path: &[NodeKey]) {
        let Content::Owned { state: State::Drafted(block), .. } = self.nodes[trunk].content else {
            unreachable!("the path was checked");
        };
        let length = self.length_of(trunk);
        let grown = length + path.iter().map(|&node| self.length_of(node)).sum::<u32>();
        self.grow_into_draft(trunk, block, pages_between(length, grown));
        let node = &self.nodes[trunk];
        let slot = node.slot as usize;
        self.lengths[slot] = grown;
        self.tail_pages[slot] = node.tail_page();
        while let Some(child) = self.nodes[trunk].first_child {
            self.remove_subtree(child);
        }
        self.changes.reshaped();
    }

    fn check_accept(&self, trunk: NodeKey, path: &[NodeKey]) -> Result<BlockKey, ForestError> {
        let record = self.node(trunk)?;
        let block = match record.content {
            Content::Owned { state: State::Drafted(block), .. } => block,
            Content::Owned { .. } => return Err(ForestError::NoDraft { node: trunk }),
            Content::Draft { .. } => return Err(ForestError::Draft { node: trunk }),
        };
        let mut above = trunk;
        for (index, &node) in path.iter().enumerate() {
            if self.node(node)?.parent != Some(above) {
                return Err(ForestError::NotAPath { index, node });
            }
            above = node;
        }
        Ok(block)
    }

    /// `page * 64 + token` of every token along `path`.
    fn draft_places(&self, block: BlockKey, path: &[NodeKey]) -> Vec<u32> {
        let pages = &self.blocks[block].pages;
        let positions = path.iter().flat_map(|&key| {
            let Content::Draft { begin, .. } = self.nodes[key].content else {
                unreachable!("only draft nodes are below a trunk that carries a draft");
            };
            begin..begin + self.length_of(key)
        });
        positions.map(|position| place(pages, position)).collect()
    }

    /// The `count` pages that a trunk grows into: free ones, and when they run out the block's own, in order.
    ///
    /// In order, so that no move writes where a later one reads: the module's documentation has the proof.
    fn pages_for_draft(&self, block: BlockKey, count: u32) -> Vec<PageId> {
        let mut pages = self.pool.next_pages(count);
        let own = self.blocks[block].pages.iter().copied();
        let own = own.filter(|&page| page != NONE);
        pages.extend(own.take(count as usize - pages.len()));
        debug_assert_eq!(pages.len() as u32, count);
        pages
    }

    /// Gives the trunk its pages of [`Self::pages_for_draft`].
    fn grow_into_draft(&mut self, trunk: NodeKey, block: BlockKey, count: u32) {
        let added = self.pages_for_draft(block, count);
        let free = self.pool.ready().min(count);
        let taken = self.pool.allocate_many(free);
        debug_assert_eq!(taken.as_deref(), Ok(&added[..free as usize]));
        for &page in &added[free as usize..] {
            self.pool.retain(page);
        }
        if let Content::Owned { pages, .. } = &mut self.nodes[trunk].content {
            pages.extend(added);
        }
    }
}

/// Pages that a node of `length` tokens takes to hold `grown`.
fn pages_between(length: u32, grown: u32) -> u32 {
    grown.div_ceil(PAGE_TOKENS) - length.div_ceil(PAGE_TOKENS)
}

/// Tokens of all nodes of a draft whose parents and lengths are in order.
fn check_draft(draft: &[DraftNode]) -> Result<u32, ForestError> {
    if draft.is_empty() {
        return Err(ForestError::Empty { argument: "draft" });
    }
    let mut tokens = 0u64;
    for (index, node) in draft.iter().enumerate() {
        if let Some(parent) = node.parent.filter(|&parent| parent as usize >= index) {
            return Err(ForestError::DraftOrder { index, parent });
        }
        if node.tokens == 0 {
            return Err(ForestError::EmptyDraftNode { index });
        }
        tokens += u64::from(node.tokens);
    }
    if tokens > u64::from(TokenForest::MAX_DRAFT_TOKENS) {
        return Err(ForestError::DraftTooLong { tokens });
    }
    Ok(tokens as u32)
}
