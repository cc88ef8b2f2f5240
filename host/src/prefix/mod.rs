//! Prefixes that are found again: which tokens a forest holds, by their ids.
//!
//! A [`PrefixIndex`] knows the token ids of *sealed* nodes. [`PrefixIndex::open`] looks for the longest beginning of a
//! sequence and gives a leaf below it, so that only the rest has to be computed. Ids are compared, one by one; no hash
//! decides. It holds no keys or values: those lie in the forest's pages, and moves say which tokens to copy.
//!
//! ```text
//! seal [system prompt, 200][question A, 90]     one node of 290 tokens
//! open [system prompt, 200][question B, 70]     200 match, which is 3 pages and 8 tokens
//!
//!      192 ---+--- 98    (8 of the system prompt, then A)      the node, cut between pages: nothing moves
//!             +---  8    (copies of those 8, then B's place)   the new leaf
//! ```
//!
//! So a node is cut between pages only, and siblings may begin with the same tokens, but with less than a page of
//! them. No open copies more than 63 tokens.

mod error;
mod evict;
mod records;

use kernels_gpu::abi::TokenMove;

pub use error::PrefixError;

use crate::tree::{NodeKey, TokenForest};
use evict::Recency;
use records::{Match, PAGE, Record, Records, in_common};

/// What [`PrefixIndex::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// A new leaf, which the caller prunes in the end. It holds the last tokens of those that matched where they end
    /// within a page.
    pub node: NodeKey,
    /// Tokens that the path to `node` holds, with their K and V; the caller computes those from here on.
    pub matched: u32,
}

/// What an index has done and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Calls of [`PrefixIndex::open`].
    pub opens: u64,
    /// Those that found something.
    pub hits: u64,
    /// Tokens of all opened sequences.
    pub tokens: u64,
    /// Those of them that were found.
    pub tokens_saved: u64,
    /// Those of the found that were copied, since they share a page with tokens that were not.
    pub tokens_copied: u64,
    /// Nodes evicted.
    pub evictions: u64,
    /// Nodes that the index holds now.
    pub nodes: usize,
    /// Pages that they hold, one of a smaller format counted like any other.
    pub pages: u32,
}

/// Token ids of a forest's sealed nodes, by salt.
///
/// Whatever the salt keeps apart never meets: tenants, models, anything that K and V depend on beside the ids. A node in
/// the index is evicted only when nothing hangs below it and nobody has pinned it: the node used least recently goes
/// first, so a subtree goes from its leaves up.
///
/// All changes of an indexed node have to come through the index.
#[derive(Debug)]
pub struct PrefixIndex {
    records: Records,
    recency: Recency,
    budget_pages: u32,
    stats: PrefixStats,
}

impl PrefixIndex {
    /// An empty index whose nodes hold no more than `budget_pages` pages; with 0 it keeps nothing.
    pub fn new(budget_pages: u32) -> Self {
        Self {
            records: Records::default(),
            recency: Recency::default(),
            budget_pages,
            stats: PrefixStats::default(),
        }
    }

    /// What it has done and holds.
    pub fn stats(&self) -> PrefixStats {
        PrefixStats { nodes: self.records.len(), ..self.stats }
    }

    /// Whether `node` is in the index.
    pub fn contains(&self, node: NodeKey) -> bool {
        self.records.get(node).is_some()
    }

    /// Tokens of `tokens` that [`PrefixIndex::open`] would find.
    pub fn find(&self, tokens: &[u32], salt: u64) -> usize {
        self.records.find(tokens, salt).tokens()
    }

    /// Ids of the path to `node`, from the root on.
    ///
    /// # Errors
    /// [`PrefixError::NotIndexed`].
    pub(crate) fn path_tokens(&self, node: NodeKey) -> Result<Vec<u32>, PrefixError> {
        let mut path = Vec::new();
        let mut next = Some(node);
        while let Some(node) = next {
            let record = self.record(node)?;
            path.push(&record.tokens[..]);
            next = record.parent;
        }
        path.reverse();
        Ok(path.concat())
    }

    /// Makes a leaf below the longest sealed beginning of `tokens`, or a root if there is none. A sealed node of which
    /// only some tokens match is cut between two pages; its key stays with the later part. What of the match is
    /// beyond the cut, less than a page, is copied to the leaf: by the moves, which have to be run before
    /// anything else is written. Without a page for them they are left out, and where they lie in a page that is not
    /// native.
    ///
    /// # Errors
    /// [`PrefixError::NoTokens`], or the forest's: too many nodes.
    pub fn open(
        &mut self,
        forest: &mut TokenForest,
        tokens: &[u32],
        salt: u64,
    ) -> Result<(Opened, Vec<TokenMove>), PrefixError> {
        if tokens.is_empty() {
            return Err(PrefixError::NoTokens);
        }
        forest.check_nodes(2)?;
        let found = self.records.find(tokens, salt);
        let (parent, part) = self.cut(forest, found)?;
        let leaf = match parent {
            Some(parent) => forest.fork(parent, 1)?[0],
            None => forest.insert_root(0)?,
        };
        let (copied, moves) = match part {
            Some((source, count)) => self.copy_front(forest, source, count, leaf)?,
            None => (0, Vec::new()),
        };
        let held = match parent {
            Some(parent) => forest.context_length(parent)?,
            None => 0,
        };
        // The tokens are the forest's, whose pages hold fewer than 2^31.
        let matched = held as u32 + copied;
        let stats = &mut self.stats;
        stats.opens += 1;
        stats.hits += u64::from(matched > 0);
        stats.tokens += tokens.len() as u64;
        stats.tokens_saved += u64::from(matched);
        stats.tokens_copied += u64::from(copied);
        let node = leaf;
        Ok((Opened { node, matched }, moves))
    }

    /// Enters `leaf`, whose tokens all have their K and V, and returns the leaf to go on from: an empty child of the
    /// node that holds the tokens from now on. `tokens` are the ids of the whole path, and everything above `leaf` is
    /// in the index already. What was sealed meanwhile with the same tokens, a page of them at least, is shared from
    /// then on, and `leaf`'s own pages return.
    ///
    /// Where the budget does not allow it `leaf` is returned as it is; likewise a leaf without tokens.
    ///
    /// # Errors
    /// [`PrefixError::Count`], [`PrefixError::OtherTokens`], [`PrefixError::OtherSalt`]; [`PrefixError::NotIndexed`] if
    /// the node above `leaf` is not in the index; the forest's for a node that does not grow, or too many nodes.
    pub fn seal(
        &mut self,
        forest: &mut TokenForest,
        leaf: NodeKey,
        tokens: &[u32],
        salt: u64,
    ) -> Result<NodeKey, PrefixError> {
        let (parent, own) = self.check_seal(forest, leaf, tokens, salt)?;
        if own.is_empty() {
            return Ok(leaf);
        }
        forest.check_nodes(2)?;
        let (parent, own) = match self.share(forest, leaf, parent, own, salt)? {
            Shared::Whole(node) => {
                forest.prune(leaf)?;
                self.touch(node);
                return Ok(forest.fork(node, 1)?[0]);
            }
            Shared::Part(parent, own) => (parent, own),
        };
        let pages = own.len().div_ceil(PAGE) as u32;
        if !self.make_budget(forest, pages)? {
            return Ok(leaf);
        }
        let below = forest.fork(leaf, 1)?[0];
        let record =
            Record { tokens: own.to_vec(), parent, salt, children: Vec::new(), pins: 0, used: 0 };
        self.records.insert(leaf, record);
        self.stats.pages += pages;
        self.touch(leaf);
        Ok(below)
    }

    /// Cuts the node of which only a part matches; what the new leaf goes below, and the tokens to copy: the first so
    /// many of a node.
    fn cut(&mut self, forest: &mut TokenForest, found: Match) -> Result<Cut, PrefixError> {
        let Some((node, common)) = found.part else {
            self.touch_all(found.whole);
            return Ok((found.whole, None));
        };
        self.touch(node);
        let aligned = common - common % PAGE;
        let parent = match aligned {
            0 => found.whole,
            _ => Some(self.split(forest, node, aligned)?),
        };
        let rest = (common > aligned).then_some((node, (common - aligned) as u32));
        Ok((parent, rest))
    }

    fn split(
        &mut self,
        forest: &mut TokenForest,
        node: NodeKey,
        tokens: usize,
    ) -> Result<NodeKey, PrefixError> {
        let upper = forest.split(node, tokens as u32)?;
        self.records.split(node, tokens, upper);
        self.touch(node);
        Ok(upper)
    }

    /// Gives `leaf`, which is empty, copies of the first `count` tokens of `source`.
    fn copy_front(
        &mut self,
        forest: &mut TokenForest,
        source: NodeKey,
        count: u32,
        leaf: NodeKey,
    ) -> Result<(u32, Vec<TokenMove>), PrefixError> {
        if forest.format(source)?.1 > 0 {
            // Moves are of native pages.
            return Ok((0, Vec::new()));
        }
        self.hold(source);
        let room = self.make_room(forest, 1);
        self.let_go(source);
        if room? == 0 {
            return Ok((0, Vec::new()));
        }
        forest.append(leaf, count)?;
        let (mut from, mut to) = (Vec::new(), Vec::new());
        forest.append_targets(source, 0..count, &mut from)?;
        forest.append_targets(leaf, 0..count, &mut to)?;
        let moves = from.into_iter().zip(to);
        let moves = moves.map(|(from, to)| TokenMove { from, to }).collect();
        Ok((count, moves))
    }

    /// What is above `leaf`, and those of `tokens` that are its own.
    fn check_seal<'a>(
        &self,
        forest: &TokenForest,
        leaf: NodeKey,
        tokens: &'a [u32],
        salt: u64,
    ) -> Result<(Option<NodeKey>, &'a [u32]), PrefixError> {
        forest.check_growing(leaf)?;
        forest.check_whole(leaf)?;
        let held = forest.context_length(leaf)?;
        if held != tokens.len() as u64 {
            let ids = tokens.len();
            return Err(PrefixError::Count { node: leaf, ids, held });
        }
        let parent = forest.parent(leaf)?;
        let begin = tokens.len() - forest.length(leaf)? as usize;
        let (mut end, mut next) = (begin, parent);
        while let Some(node) = next {
            let record = self.record(node)?;
            if record.salt != salt {
                let held = record.salt;
                return Err(PrefixError::OtherSalt { node, salt, held });
            }
            let first = end - record.tokens.len();
            let same = in_common(&record.tokens, &tokens[first..end]);
            if same < record.tokens.len() {
                return Err(PrefixError::OtherTokens {
                    node,
                    position: first + same,
                    id: tokens[first + same],
                    held: record.tokens[same],
                });
            }
            (end, next) = (first, record.parent);
        }
        Ok((parent, &tokens[begin..]))
    }

    /// Moves `leaf` down to where it shares less than a page with any sibling; it loses the pages that it has in common
    /// with others.
    fn share<'a>(
        &mut self,
        forest: &mut TokenForest,
        leaf: NodeKey,
        mut parent: Option<NodeKey>,
        mut own: &'a [u32],
        salt: u64,
    ) -> Result<Shared<'a>, PrefixError> {
        loop {
            let (mut best, mut equal) = (None, None);
            self.records.matches(parent, salt, own, |node, common| {
                if best.is_none_or(|(_, most)| common > most) {
                    best = Some((node, common));
                }
                if common == own.len() && common == self.records.tokens(node).len() {
                    equal = Some(node);
                }
            });
            if let Some(node) = equal {
                return Ok(Shared::Whole(node));
            }
            let Some((node, common)) = best else {
                return Ok(Shared::Part(parent, own));
            };
            let tokens = self.records.tokens(node).len();
            let aligned = common - common % PAGE;
            if aligned == 0 {
                return Ok(Shared::Part(parent, own));
            }
            let above = match aligned == tokens {
                true => node,
                false => self.split(forest, node, aligned)?,
            };
            if aligned == own.len() {
                return Ok(Shared::Whole(above));
            }
            forest.graft(leaf, above, aligned as u32);
            (parent, own) = (Some(above), &own[aligned..]);
        }
    }

    fn record(&self, node: NodeKey) -> Result<&Record, PrefixError> {
        let record = self.records.get(node);
        record.ok_or(PrefixError::NotIndexed { node })
    }

    /// Checks the index against itself and the forest, where debug assertions are on.
    ///
    /// # Panics
    /// If they do not fit: a bug of this crate.
    pub fn debug_assert_invariants(&self, forest: &TokenForest) {
        if !cfg!(debug_assertions) {
            return;
        }
        let mut pages = 0;
        for (node, record) in self.records.iter() {
            assert_eq!(forest.parent(node), Ok(record.parent));
            assert_eq!(forest.is_sealed(node), Ok(true));
            assert_eq!(forest.length(node), Ok(record.tokens.len() as u32));
            pages += forest.pages(node).map_or(0, |pages| pages.len() as u32);
            let list = self.records.children(record.parent, record.salt);
            assert!(list.contains(&node));
            self.recency.assert_holds(node, record);
            for pair in record.children.windows(2) {
                let [a, b] = [pair[0], pair[1]].map(|node| &self.records.get(node).unwrap().tokens);
                assert!(a < b && in_common(a, b) < PAGE, "siblings {pair:?}");
            }
        }
        assert_eq!(pages, self.stats.pages);
        assert!(pages <= self.budget_pages);
    }
}

/// What a new leaf goes below, and the tokens to copy to it: the first so many of a node.
type Cut = (Option<NodeKey>, Option<(NodeKey, u32)>);

/// Where a leaf's tokens are sealed.
enum Shared<'a> {
    /// In a node that has them all.
    Whole(NodeKey),
    /// In the leaf, below this node; those that are left to it.
    Part(Option<NodeKey>, &'a [u32]),
}
