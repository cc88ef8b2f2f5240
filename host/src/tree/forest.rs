//! The forest itself: making nodes, growing them, asking about them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::{APPEND_LIVE, NONE, PAGE_TOKENS};
use slotmap::SlotMap;

use super::ForestError;
use super::NodeKey;
use super::change::{ChangeLog, GrowthCursor};
use super::node::{Block, BlockKey, Content, Node, State, Tree, TreeKey};
use super::nodes::Nodes;
use super::residue::Residues;
use super::scratch::Marks;
use crate::cache::{Directory, PageId, PagePool};

/// Many trees of token runs over one page pool.
///
/// Every node has a *length slot*, an index below [`TokenForest::lengths`]`().len()` that no other node
/// has and that a later node takes over once the node is gone. A call that fails has changed nothing.
///
/// ```
/// use deft::{cache::PagePool, tree::TokenForest};
///
/// let mut forest = TokenForest::new(PagePool::new(16)?);
/// let prompt = forest.insert_root(100)?;
/// let leaves = forest.fork(prompt, 3)?;
/// forest.extend(&leaves, 1)?;
/// let view = forest.view(&leaves)?;
/// assert_eq!((view.queries, view.runs.len()), (3, 4));
/// assert_eq!((view.runs[0].tokens, view.runs[0].queries.clone()), (100, 0..3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TokenForest {
    pub(super) pool: PagePool,
    pub(super) nodes: Nodes,
    pub(super) trees: SlotMap<TreeKey, Tree>,
    pub(super) blocks: SlotMap<BlockKey, Block>,
    /// `[slots]`; 0 for a slot that is free.
    pub(super) lengths: Vec<u32>,
    /// `[slots]`; [`NONE`] for a node without tokens and a slot that is free.
    pub(super) tail_pages: Vec<PageId>,
    pub(super) free_slots: Vec<u32>,
    pub(super) changes: ChangeLog,
    pub(super) directory: Option<Directory>,
    pub(super) residues: Option<Residues>,
    pub(super) compacted_pages: u32,
    pub(super) marks: Marks,
}

impl TokenForest {
    /// Most nodes a forest may hold.
    pub(crate) const MAX_NODES: usize = 1 << 20;
    /// Most queries a view may have: [`kernels_gpu::abi::Segment::visible`] packs them in 16 bits.
    pub const MAX_QUERIES: usize = u16::MAX as usize;
    /// Most tokens of a draft block, all its nodes together.
    pub const MAX_DRAFT_TOKENS: u32 = 4096;

    /// Most tokens of a draft that grows, those that are gone included.
    pub const MAX_GROWN_TOKENS: u32 = 1 << 24;

    /// A forest without trees that takes its pages from `pool`.
    pub fn new(pool: PagePool) -> Self {
        static FORESTS: AtomicU64 = AtomicU64::new(0);
        let number = FORESTS.fetch_add(1, Ordering::Relaxed);
        Self {
            pool,
            nodes: Nodes::new(number),
            trees: SlotMap::with_key(),
            blocks: SlotMap::with_key(),
            lengths: Vec::new(),
            tail_pages: Vec::new(),
            free_slots: Vec::new(),
            changes: ChangeLog::new(number),
            directory: None,
            residues: None,
            compacted_pages: 0,
            marks: Marks::default(),
        }
    }

    /// Starts a tree with a root of `length` tokens (a prompt); 0 to append them later.
    ///
    /// # Errors
    /// [`ForestError::TooManyNodes`], or out of pages ([`ForestError::Pool`]).
    pub fn insert_root(&mut self, length: u32) -> Result<NodeKey, ForestError> {
        self.check_room(1)?;
        self.pool.check_free(u64::from(length.div_ceil(PAGE_TOKENS)))?;
        let tree = self.trees.insert(Tree { root: NodeKey::default() });
        let root = self.create_node(tree, None, Content::empty());
        self.trees[tree].root = root;
        self.grow(root, length);
        self.changes.reshaped();
        Ok(root)
    }

    /// Gives `node` `n` more children, each empty, and seals it. Nothing is copied.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Empty`] for `n` = 0, [`ForestError::Draft`],
    /// [`ForestError::DraftPending`], or [`ForestError::TooManyNodes`].
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ForestError> {
        let parent = self.node(node)?;
        match parent.content {
            Content::Draft { .. } => return Err(ForestError::Draft { node }),
            Content::Owned { state: State::Drafted(_), .. } => {
                return Err(ForestError::DraftPending { node });
            }
            Content::Owned { .. } => {}
        }
        let tree = parent.tree;
        if n == 0 {
            return Err(ForestError::Empty { argument: "n" });
        }
        self.check_room(n)?;
        self.set_state(node, State::Sealed);
        let children = (0..n).map(|_| self.create_node(tree, Some(node), Content::empty()));
        let children = children.collect();
        self.changes.reshaped();
        Ok(children)
    }

    /// Adds `k` tokens to `leaf` and says which of its tokens they are. Their K and V go where
    /// [`TokenForest::append_targets`] says.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Empty`] for `k` = 0, [`ForestError::Sealed`] for a
    /// node that was forked, [`ForestError::Draft`], [`ForestError::DraftPending`],
    /// [`ForestError::LengthOverflow`], or out of pages ([`ForestError::Pool`]).
    pub fn append(&mut self, leaf: NodeKey, k: u32) -> Result<Range<u32>, ForestError> {
        let pages = self.check_growth(leaf, k)?;
        self.pool.check_free(u64::from(pages))?;
        let begin = self.length_of(leaf);
        self.grow(leaf, k);
        Ok(begin..begin + k)
    }

    /// Adds `k` tokens to each of `leaves`, or to none: a decode step. Returns the pages taken; 0 means
    /// that only [`TokenForest::lengths`] has changed. Allocates memory only where it takes pages.
    ///
    /// # Errors
    /// Those of [`TokenForest::append`], [`ForestError::DuplicateNode`], and [`ForestError::Empty`] for
    /// an empty slice.
    pub fn extend(&mut self, leaves: &[NodeKey], k: u32) -> Result<u32, ForestError> {
        if leaves.is_empty() {
            return Err(ForestError::Empty { argument: "leaves" });
        }
        self.grow_all(leaves.iter().map(|&leaf| (leaf, k)))
    }

    /// Adds `k` tokens to each `(leaf, k)`, or to none; nothing for an empty slice. Returns the time before, for
    /// [`TokenForest::undo_growth`].
    ///
    /// # Errors
    /// Those of [`TokenForest::extend`].
    pub(crate) fn grow_each(
        &mut self,
        leaves: &[(NodeKey, u32)],
    ) -> Result<GrowthCursor, ForestError> {
        let before = self.growth_cursor();
        self.grow_all(leaves.iter().copied())?;
        Ok(before)
    }

    /// Adds tokens to all of `leaves` or to none; the pages taken.
    fn grow_all(
        &mut self,
        leaves: impl Iterator<Item = (NodeKey, u32)> + Clone,
    ) -> Result<u32, ForestError> {
        self.marks.begin(self.lengths.len());
        let mut pages = 0;
        for (index, (leaf, k)) in leaves.clone().enumerate() {
            pages += u64::from(self.check_growth(leaf, k)?);
            if !self.marks.insert(self.nodes[leaf].slot) {
                return Err(ForestError::DuplicateNode { node: leaf, index });
            }
        }
        self.pool.check_free(pages)?;
        for (leaf, k) in leaves {
            self.grow(leaf, k);
        }
        Ok(pages as u32)
    }

    /// Undoes a [`TokenForest::grow_each`] after which nothing else has happened, to the order of free pages: plans made
    /// before are as good as they were.
    pub(crate) fn undo_growth(&mut self, leaves: &[(NodeKey, u32)], before: GrowthCursor) {
        for &(leaf, k) in leaves.iter().rev() {
            self.shorten(leaf, k);
        }
        self.changes.forget_since(before);
    }

    /// Takes the last `k` tokens of each of `leaves` away, or of none, and the pages that held no others: undoes
    /// [`TokenForest::extend`] where the tokens' K and V could not be written. Returns the pages that are free
    /// again; 0 means that only [`TokenForest::lengths`] has changed.
    ///
    /// # Errors
    /// As [`TokenForest::extend`], but for want of pages; [`ForestError::TokenRange`] for a leaf of fewer tokens,
    /// [`ForestError::InFormat`] for tokens in pages that are not native.
    pub fn shrink(&mut self, leaves: &[NodeKey], k: u32) -> Result<u32, ForestError> {
        if leaves.is_empty() {
            return Err(ForestError::Empty { argument: "leaves" });
        }
        self.marks.begin(self.lengths.len());
        for (index, &node) in leaves.iter().enumerate() {
            self.check_growth(node, k)?;
            let length = self.length_of(node);
            if length < k {
                return Err(ForestError::TokenRange { node, begin: 0, end: k, length });
            }
            self.check_native(node, length - k..length)?;
            if !self.marks.insert(self.nodes[node].slot) {
                return Err(ForestError::DuplicateNode { node, index });
            }
        }
        let free = self.pool.free();
        for &leaf in leaves {
            self.shorten(leaf, k);
        }
        let freed = self.pool.free() - free;
        if freed > 0 {
            // A plan may know the pages.
            self.changes.reshaped();
        }
        Ok(freed)
    }

    /// The page pool; its counters are exact.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }
    /// The pool, to be told where memory comes and goes.
    pub(crate) fn pool_mut(&mut self) -> &mut PagePool {
        &mut self.pool
    }

    /// Tokens of every node, by length slot: `[slots]`. What a device's counters have to hold.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// The page that every node's last token is in, by length slot: `[slots]`; [`NONE`] for a node
    /// without tokens.
    pub fn tail_pages(&self) -> &[PageId] {
        &self.tail_pages
    }

    pub(super) fn node(&self, node: NodeKey) -> Result<&Node, ForestError> {
        self.nodes.get(node).ok_or(ForestError::UnknownNode { node })
    }

    pub(super) fn length_of(&self, node: NodeKey) -> u32 {
        self.lengths[self.nodes[node].slot as usize]
    }

    pub(super) fn check_room(&self, added: usize) -> Result<(), ForestError> {
        let held = self.nodes.len();
        if added > Self::MAX_NODES - held {
            return Err(ForestError::TooManyNodes { added, held });
        }
        Ok(())
    }

    /// Whether `node` is one that grows.
    pub(crate) fn check_growing(&self, node: NodeKey) -> Result<(), ForestError> {
        match self.node(node)?.content {
            Content::Draft { .. } => Err(ForestError::Draft { node }),
            Content::Owned { state, .. } => match state {
                State::Growing => Ok(()),
                State::Drafted(_) => Err(ForestError::DraftPending { node }),
                State::Sealed => Err(ForestError::Sealed { node }),
            },
        }
    }

    /// Whether `node` may grow by `k` tokens; the pages that takes.
    fn check_growth(&self, node: NodeKey, k: u32) -> Result<u32, ForestError> {
        self.check_growing(node)?;
        if k == 0 {
            return Err(ForestError::Empty { argument: "k" });
        }
        let length = self.length_of(node);
        let grown =
            length.checked_add(k).ok_or(ForestError::LengthOverflow { node, length, added: k })?;
        Ok(grown.div_ceil(PAGE_TOKENS) - length.div_ceil(PAGE_TOKENS))
    }

    /// Grows a node that passed [`Self::check_growth`] and for which pages are free.
    fn grow(&mut self, node: NodeKey, k: u32) {
        let node = &mut self.nodes[node];
        let length = &mut self.lengths[node.slot as usize];
        *length += k;
        let Content::Owned { pages, .. } = &mut node.content else {
            unreachable!("a draft node does not grow");
        };
        while (pages.len() as u32) < length.div_ceil(PAGE_TOKENS) {
            let page = self.pool.allocate().expect("free pages were counted");
            pages.push(page);
            self.tail_pages[node.slot as usize] = page;
            self.changes.grew(node.slot, page);
        }
    }

    /// Undoes [`Self::grow`].
    fn shorten(&mut self, node: NodeKey, k: u32) {
        let node = &mut self.nodes[node];
        let slot = node.slot as usize;
        self.lengths[slot] -= k;
        let Content::Owned { pages, .. } = &mut node.content else {
            unreachable!("a draft node does not grow");
        };
        // The page taken last returns first, to be taken as it was.
        for page in pages.drain(self.lengths[slot].div_ceil(PAGE_TOKENS) as usize..).rev() {
            self.pool.release(page);
        }
        self.tail_pages[slot] = node.tail_page();
    }

    pub(super) fn set_state(&mut self, node: NodeKey, new: State) {
        if let Some(Content::Owned { state, .. }) =
            self.nodes.get_mut(node).map(|node| &mut node.content)
        {
            *state = new;
        }
    }

    /// Makes a node of no tokens, the last child of `parent`.
    pub(super) fn create_node(
        &mut self,
        tree: TreeKey,
        parent: Option<NodeKey>,
        content: Content,
    ) -> NodeKey {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.lengths.push(0);
            self.tail_pages.push(NONE);
            self.lengths.len() as u32 - 1
        });
        debug_assert!(slot < APPEND_LIVE);
        let previous = parent.and_then(|parent| self.nodes[parent].last_child);
        let key = self.nodes.insert(Node {
            slot,
            tree,
            parent,
            first_child: None,
            last_child: None,
            previous,
            next: None,
            content,
            coded: None,
            compacted: None,
        });
        if let Some(previous) = previous {
            self.nodes[previous].next = Some(key);
        }
        if let Some(parent) = parent {
            let parent = &mut self.nodes[parent];
            parent.first_child.get_or_insert(key);
            parent.last_child = Some(key);
        }
        key
    }
}

impl Content {
    fn empty() -> Self {
        Self::Owned { pages: Vec::new(), state: State::Growing }
    }
}
