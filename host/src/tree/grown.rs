//! Drafts that grow: beams, of which each step adds the newest tokens and takes what no beam goes on from.

use kernels_gpu::abi::{NONE, PAGE_TOKENS, TokenMove};

use super::node::{Block, BlockKey, Content, State, place};
use super::{ForestError, NodeKey, TokenForest};
use crate::cache::PageId;

/// What a draft holds: see [`TokenForest::draft_use`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftUse {
    /// Pages that some node has a token on.
    pub pages: u32,
    /// Tokens of all its nodes.
    pub tokens: u32,
    /// Tokens that it may grow by without another page.
    pub room: u32,
}

impl TokenForest {
    /// Adds a node of one token below each of `parents`, each `trunk` or a node of its draft; returns their keys. Where
    /// `trunk` carries no draft one begins. A parent may be listed more than once.
    ///
    /// The tokens lie one after another behind those of the nodes before, so a step of `n` of them takes at most
    /// `ceil(n / 64)` pages. Their K and V go where [`TokenForest::append_targets`] says. In a view such a draft is a
    /// run for each row tile of neighbouring queries, with the pages that some of those see. Those are few where
    /// neighbours have ancestors in common: if nodes are in the order of their parents, and those are in the order of
    /// theirs.
    ///
    /// ```
    /// use deft::{cache::PagePool, tree::TokenForest};
    ///
    /// let mut forest = TokenForest::new(PagePool::new(8)?);
    /// let trunk = forest.insert_root(100)?;
    /// let first = forest.grow_draft(trunk, &[trunk, trunk, trunk])?;
    /// let next = forest.grow_draft(trunk, &[first[0], first[0], first[2]])?;
    /// forest.prune_draft(&[first[1]])?; // no beam goes on from it
    /// let view = forest.view(&next)?;
    /// assert_eq!(view.masks, [0b001001, 0b010001, 0b100100]);
    /// assert_eq!(forest.pool().live(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Empty`] without parents, [`ForestError::NotInDraft`],
    /// [`ForestError::Sealed`] for a trunk that was forked, [`ForestError::Draft`] for one that is a draft itself,
    /// [`ForestError::DraftTooLarge`], [`ForestError::TooManyNodes`], or out of pages ([`ForestError::Pool`]).
    pub fn grow_draft(
        &mut self,
        trunk: NodeKey,
        parents: &[NodeKey],
    ) -> Result<Vec<NodeKey>, ForestError> {
        let block = self.check_trunk(trunk)?;
        if parents.is_empty() {
            return Err(ForestError::Empty { argument: "parents" });
        }
        for (index, &node) in parents.iter().enumerate() {
            let own = match self.node(node)?.content {
                Content::Draft { block: of, .. } => Some(of) == block,
                Content::Owned { .. } => node == trunk,
            };
            if !own {
                return Err(ForestError::NotInDraft { index, node, trunk });
            }
        }
        self.check_room(parents.len())?;
        let first = block.map_or(0, |block| self.blocks[block].end());
        let tokens = u64::from(first) + parents.len() as u64;
        if tokens > u64::from(Self::MAX_GROWN_TOKENS) {
            return Err(ForestError::DraftTooLarge { tokens });
        }
        let held = first.div_ceil(PAGE_TOKENS);
        let added = self.pool.allocate_many((tokens as u32).div_ceil(PAGE_TOKENS) - held)?;
        let block = block.unwrap_or_else(|| self.begin_draft(trunk));
        let record = &mut self.blocks[block];
        record.grown = true;
        record.tokens = tokens as u32;
        record.pages.extend_from_slice(&added);
        let keys = (first..).zip(parents);
        let keys = keys.map(|(begin, &parent)| self.add_draft_token(block, begin, parent));
        let keys = keys.collect();
        for page in added {
            self.pool.release(page);
        }
        self.changes.reshaped();
        Ok(keys)
    }

    /// Takes `leaves`, nodes of drafts that nothing is below, and whatever above them in their drafts nothing is below
    /// then; returns the number of pages that are free again. When the last node of a draft goes, the node that carried
    /// it grows again.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::NotADraftLeaf`], or [`ForestError::DuplicateNode`].
    pub fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ForestError> {
        self.marks.begin(self.lengths.len());
        for (index, &node) in leaves.iter().enumerate() {
            let record = self.node(node)?;
            let (slot, inner) = (record.slot, record.first_child.is_some());
            if inner || matches!(record.content, Content::Owned { .. }) {
                return Err(ForestError::NotADraftLeaf { index, node });
            }
            if !self.marks.insert(slot) {
                return Err(ForestError::DuplicateNode { node, index });
            }
        }
        let free = self.pool.free();
        for &leaf in leaves {
            let mut next = Some(leaf);
            while let Some(node) = next {
                let parent = self.nodes[node].parent.expect("a draft has a trunk above it");
                self.unlink(node);
                self.release_node(node);
                let above = &self.nodes[parent];
                let bare = above.first_child.is_none();
                next = (bare && matches!(above.content, Content::Draft { .. })).then_some(parent);
            }
        }
        if !leaves.is_empty() {
            self.changes.reshaped();
        }
        Ok(self.pool.free() - free)
    }

    /// Pages and tokens of the draft of `trunk`; 0 of a node without one. Where nodes are gone in between, the tokens
    /// that are left may lie on many pages: then it is time for [`TokenForest::gather_draft`].
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn draft_use(&self, trunk: NodeKey) -> Result<DraftUse, ForestError> {
        let Content::Owned { state: State::Drafted(block), .. } = self.node(trunk)?.content else {
            return Ok(DraftUse::default());
        };
        let block = &self.blocks[block];
        let pages = block.pages.iter().filter(|&&page| page != NONE).count() as u32;
        let room = block.end().next_multiple_of(PAGE_TOKENS) - block.end();
        Ok(DraftUse { pages, tokens: block.held, room })
    }

    /// Moves the tokens of the draft of `trunk` together on free pages, depth first, so that they lie on as few pages as can
    /// be and neighbours see few of them. Returns the moves, of which sources and targets are apart, in any order, to be
    /// made before anything else is written to a page of the pool. Keys stay.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::NoDraft`], or out of pages ([`ForestError::Pool`]).
    pub fn gather_draft(&mut self, trunk: NodeKey) -> Result<Vec<TokenMove>, ForestError> {
        let moves = self.gather_moves(trunk)?;
        self.gathered(trunk);
        Ok(moves)
    }

    /// The moves of [`Self::gather_draft`], which then is still to be done: by [`Self::gathered`], once K and V were moved.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::NoDraft`], or out of pages ([`ForestError::Pool`]).
    pub(crate) fn gather_moves(&self, trunk: NodeKey) -> Result<Vec<TokenMove>, ForestError> {
        let Content::Owned { state: State::Drafted(block), .. } = self.node(trunk)?.content else {
            return Err(ForestError::NoDraft { node: trunk });
        };
        let block = &self.blocks[block];
        let count = block.held.div_ceil(PAGE_TOKENS);
        self.pool.check_free(u64::from(count))?;
        let pages = self.pool.next_pages(count);
        let mut moves = Vec::with_capacity(block.held as usize);
        for node in self.draft_nodes(trunk) {
            let Content::Draft { begin, .. } = self.nodes[node].content else { continue };
            for position in begin..begin + self.length_of(node) {
                let from = place(&block.pages, position);
                moves.push(TokenMove { from, to: place(&pages, moves.len() as u32) });
            }
        }
        Ok(moves)
    }

    /// Puts the draft's nodes where [`Self::gather_moves`] has moved their tokens; nothing else has happened since.
    pub(crate) fn gathered(&mut self, trunk: NodeKey) {
        let Content::Owned { state: State::Drafted(block), .. } = self.nodes[trunk].content else {
            unreachable!("it was checked");
        };
        let tokens = self.blocks[block].held;
        let pages = self.pool.allocate_many(tokens.div_ceil(PAGE_TOKENS));
        let pages = pages.expect("free pages were counted");
        let old = std::mem::replace(&mut self.blocks[block].pages, pages.clone());
        self.blocks[block].tokens = tokens;
        let mut end = 0;
        for node in self.draft_nodes(trunk).collect::<Vec<_>>() {
            let length = self.length_of(node);
            let Content::Draft { begin, .. } = &mut self.nodes[node].content else { continue };
            let (was, now) = (*begin, end);
            *begin = now;
            end += length;
            for &page in &pages[pages_of(now, length)] {
                self.pool.retain(page);
            }
            for &page in &old[pages_of(was, length)] {
                self.pool.release(page);
            }
            let slot = self.nodes[node].slot as usize;
            self.tail_pages[slot] = pages[((end - 1) / PAGE_TOKENS) as usize];
        }
        for page in pages {
            self.pool.release(page);
        }
        self.changes.reshaped();
    }

    /// The nodes of a trunk's draft, depth first.
    fn draft_nodes(&self, trunk: NodeKey) -> impl Iterator<Item = NodeKey> + '_ {
        std::iter::successors(Some(trunk), move |&node| self.next_in_subtree(node, trunk)).skip(1)
    }

    /// The draft that `trunk` carries, if it does; otherwise whether it may.
    fn check_trunk(&self, trunk: NodeKey) -> Result<Option<BlockKey>, ForestError> {
        match self.node(trunk)?.content {
            Content::Owned { state: State::Drafted(block), .. } => Ok(Some(block)),
            _ => self.check_growing(trunk).map(|()| None),
        }
    }

    /// An empty draft of `trunk`, about to get nodes.
    fn begin_draft(&mut self, trunk: NodeKey) -> BlockKey {
        let pages = Vec::<PageId>::new();
        let block = Block { trunk, pages, nodes: 0, held: 0, tokens: 0, grown: true };
        let block = self.blocks.insert(block);
        self.set_state(trunk, State::Drafted(block));
        block
    }

    /// A node of the one token at `begin`, whose page is there.
    fn add_draft_token(&mut self, block: BlockKey, begin: u32, parent: NodeKey) -> NodeKey {
        let (tree, above) = (self.nodes[parent].tree, self.path_tokens(parent));
        let key = self.create_node(tree, Some(parent), Content::Draft { block, begin, above });
        let record = &mut self.blocks[block];
        let page = record.pages[(begin / PAGE_TOKENS) as usize];
        record.nodes += 1;
        record.held += 1;
        self.pool.retain(page);
        let slot = self.nodes[key].slot as usize;
        self.lengths[slot] = 1;
        self.tail_pages[slot] = page;
        key
    }
}

impl Block {
    /// Where the next token goes: a page that came free is not taken again.
    fn end(&self) -> u32 {
        match self.pages.last() {
            Some(&NONE) => self.pages.len() as u32 * PAGE_TOKENS,
            _ => self.tokens,
        }
    }
}

/// Pages of a block that hold `length` tokens from `begin` on.
fn pages_of(begin: u32, length: u32) -> std::ops::Range<usize> {
    (begin / PAGE_TOKENS) as usize..(begin + length).div_ceil(PAGE_TOKENS) as usize
}
