//! Nodes of fewer rows than tokens.
//!
//! The first pages of a compacted node, all full, are replaced by pages that hold *rows*: as many for each layer and KV
//! head as a policy has left. A row's place is a [`Cell`] and a number below 64; which cells a node has says the
//! [`Directory`]. Length, tokens and positions stay what they were. Like a change of format it takes two steps, between
//! which the caller moves the rows.

use std::ops::Range;

use kernels_gpu::abi::{CELL_BIASED, Cell, NONE, PAGE_TOKENS};

use super::node::Content;
use super::seal::Coded;
use super::{ForestError, NodeKey, Residue, Residues, TokenForest};
use crate::cache::{Directory, PageId, PagePool, SLAB_PAGES, SlabClass};
use crate::format::KvFormat;

/// What stands in the place of a node's first pages.
#[derive(Clone, Debug)]
pub(super) struct Compacted {
    /// Native pages that the rows lie in.
    pub(super) pages: Vec<PageId>,
    /// Where the directory has their cells.
    pub(super) indices: Range<u32>,
    /// Rows of the longest head.
    longest: u32,
    /// `[layers, kv_heads]`.
    heads: Vec<HeadRows>,
    /// The number of its residue, if rows were folded away.
    pub(super) residue: Option<u32>,
}

/// The rows of one layer and KV head of a compacted node, in the order in which they lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadRows {
    /// Each row's token, counted in the node; of a row made of several tokens its pivot's.
    pub positions: Vec<u32>,
    /// What is added to each row's scaled logit, in natural-logarithm units; empty for 0 throughout.
    pub biases: Vec<f32>,
}

/// A compaction that is under way, with the pages taken for it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Compacting {
    node: NodeKey,
    tokens: u32,
    kv_heads: u32,
    pages: Vec<PageId>,
    /// The cells of each head: `[layers, kv_heads]`.
    pub(crate) cells: Vec<Vec<Cell>>,
}

/// Where the rows of a node's first tokens lie now, and which tokens they are.
#[derive(Debug)]
pub(crate) struct NodeRows<'a> {
    /// The compacted part, if there is one.
    compacted: Option<(&'a Compacted, &'a Directory)>,
    /// Tokens that it stands for.
    first: u32,
    pages: &'a [PageId],
}

impl NodeRows<'_> {
    /// Rows of head `layer * kv_heads + kv_head` that stand for tokens before `tokens`, no fewer than are compacted.
    pub(crate) fn count(&self, head: usize, tokens: u32) -> u32 {
        self.compacted_rows(head) + (tokens - self.first)
    }

    fn compacted_rows(&self, head: usize) -> u32 {
        self.compacted.map_or(0, |(compacted, _)| compacted.heads[head].positions.len() as u32)
    }

    /// Cell and token of a row of that head.
    pub(crate) fn place(&self, head: usize, row: u32, kv_heads: u32) -> (u32, u32) {
        let before = self.compacted_rows(head);
        match self.compacted {
            Some((compacted, directory)) if row < before => {
                let index = compacted.indices.start + row / PAGE_TOKENS;
                let (layer, kv_head) = (head as u32 / kv_heads, head as u32 % kv_heads);
                let cell = directory.head(layer, kv_head)[index as usize].cell;
                (cell, row % PAGE_TOKENS)
            }
            _ => {
                let token = row - before + self.first;
                let page = self.pages[(token / PAGE_TOKENS) as usize];
                (page * kv_heads + head as u32 % kv_heads, token % PAGE_TOKENS)
            }
        }
    }

    /// The token that a row stands for, and its bias.
    pub(crate) fn token(&self, head: usize, row: u32) -> (u32, f32) {
        let before = self.compacted_rows(head);
        match self.compacted {
            Some((compacted, _)) if row < before => {
                let rows = &compacted.heads[head];
                let bias = rows.biases.get(row as usize).copied().unwrap_or(0.0);
                (rows.positions[row as usize], bias)
            }
            _ => (row - before + self.first, 0.0),
        }
    }
}

impl TokenForest {
    /// Where compacted nodes have their rows; `None` as long as there was no such node.
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// What is left of rows that were folded away; `None` without a feature map.
    pub fn residues(&self) -> Option<&Residues> {
        self.residues.as_ref()
    }

    /// Has rows folded by the feature map of `residues`; `None` if some are by another one.
    pub(crate) fn set_residues(&mut self, residues: Residues) -> Option<()> {
        if !self.residues.as_ref().is_none_or(Residues::is_unused) {
            return None;
        }
        self.residues = Some(residues);
        Some(())
    }

    /// The number of a node's residue in [`TokenForest::residues`], if it has one.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn residue(&self, node: NodeKey) -> Result<Option<u32>, ForestError> {
        Ok(self.node(node)?.residue())
    }

    /// How many of the node's first tokens are compacted; 0 for most nodes.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn compacted_tokens(&self, node: NodeKey) -> Result<u32, ForestError> {
        let record = self.node(node)?;
        Ok(record.compacted.as_ref().map_or(0, |_| record.coded_tokens()))
    }

    /// The rows that a node's compacted tokens have left: `[layers, kv_heads]`, of layers with keys of their own; empty
    /// for a node that is not compacted.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn compacted_rows(&self, node: NodeKey) -> Result<&[HeadRows], ForestError> {
        let compacted = self.node(node)?.compacted.as_deref();
        Ok(compacted.map_or(&[], |compacted| &compacted.heads))
    }

    /// Native pages that the rows of compacted nodes lie in.
    pub(crate) fn compacted_pages(&self) -> u32 {
        self.compacted_pages
    }

    /// Whether all of the node's tokens have their K and V one by one.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Compacted`] if not.
    pub(crate) fn check_whole(&self, node: NodeKey) -> Result<(), ForestError> {
        match self.compacted_tokens(node)? {
            0 => Ok(()),
            tokens => Err(ForestError::Compacted { node, tokens }),
        }
    }

    /// The rows of the first `tokens` tokens of a node, which are full pages, native or compacted.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Draft`]; [`ForestError::OtherFormat`] for pages of a format;
    /// [`ForestError::TokenRange`] for fewer tokens than are compacted, or more than fill pages.
    pub(crate) fn node_rows(
        &self,
        node: NodeKey,
        tokens: u32,
    ) -> Result<NodeRows<'_>, ForestError> {
        let record = self.node(node)?;
        let Content::Owned { pages, .. } = &record.content else {
            return Err(ForestError::Draft { node });
        };
        if let Some(Coded { format, .. }) = record.coded
            && record.compacted.is_none()
        {
            return Err(ForestError::OtherFormat { node, format });
        }
        let (length, first) = (self.length_of(node), record.coded_tokens());
        if !(first..=length - length % PAGE_TOKENS).contains(&tokens) {
            return Err(ForestError::TokenRange { node, begin: first, end: tokens, length });
        }
        let compacted = record.compacted.as_deref().zip(self.directory.as_ref());
        Ok(NodeRows { compacted, first, pages })
    }

    /// Takes pages for `rows` rows of each head, `[layers, kv_heads]`, to stand for the first `tokens` tokens of a node;
    /// with `biased`, of each head whether its rows have biases. Of those tokens
    /// [`Self::node_rows`] has been asked.
    ///
    /// # Errors
    /// Too few free pages ([`ForestError::Pool`]).
    pub(crate) fn begin_compact(
        &mut self,
        node: NodeKey,
        tokens: u32,
        kv_heads: u32,
        rows: &[u32],
        biased: &[bool],
    ) -> Result<Compacting, ForestError> {
        let pages = self.pool.allocate_many(pages_for(rows, kv_heads))?;
        let mut cells = Vec::with_capacity(rows.len());
        for (layer, biased) in
            rows.chunks_exact(kv_heads as usize).zip(biased.chunks_exact(kv_heads as usize))
        {
            let mut places =
                pages.iter().flat_map(|page| (0..kv_heads).map(move |slot| page * kv_heads + slot));
            for (&rows, &biased) in layer.iter().zip(biased) {
                let flag = if biased { CELL_BIASED } else { 0 };
                let counts = (0..rows).step_by(PAGE_TOKENS as usize);
                let of_head = counts.zip(&mut places).map(|(first, cell)| Cell {
                    cell,
                    tokens: (rows - first).min(PAGE_TOKENS) | flag,
                });
                cells.push(of_head.collect());
            }
        }
        Ok(Compacting { node, tokens, kv_heads, pages, cells })
    }

    /// Gives the pages back that were taken: no row was moved.
    pub(crate) fn abandon_compact(&mut self, compacting: Compacting) {
        release(&mut self.pool, &compacting.pages);
    }

    /// Gives the node its rows, of which `heads` says what they are, and the pages back that it had for its first tokens.
    /// `folded` is what the node's residue grows by, `[layers, kv_heads]`; empty for nothing.
    ///
    /// # Panics
    /// If something is folded without a feature map: the caller has checked it.
    pub(crate) fn finish_compact(
        &mut self,
        compacting: Compacting,
        heads: Vec<HeadRows>,
        folded: Vec<Residue>,
    ) {
        let Compacting { node, tokens, kv_heads, pages, cells } = compacting;
        let layers = cells.len() as u32 / kv_heads;
        let directory = self.directory.get_or_insert_with(|| Directory::new(layers, kv_heads));
        let record = &mut self.nodes[node];
        let before = record.coded_pages();
        let count = (tokens / PAGE_TOKENS) as usize;
        if let Content::Owned { pages, .. } = &mut record.content {
            release(&mut self.pool, &pages[before..count]);
            pages[before..count].fill(NONE);
        }
        let mut residue = None;
        if let Some(old) = record.compacted.take() {
            release(&mut self.pool, &old.pages);
            self.compacted_pages -= old.pages.len() as u32;
            directory.give_back(old.indices);
            residue = old.residue;
        }
        if !folded.is_empty() {
            let residues = self.residues.as_mut().expect("rows are folded by a feature map");
            let mut sum = residue.map(|index| residues.remove(index)).unwrap_or_default();
            sum.resize(folded.len(), Residue::default());
            sum.iter_mut().zip(&folded).for_each(|(sum, more)| sum.add(more));
            residue = Some(residues.insert(sum));
        }
        let most = cells.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let indices = directory.take(most);
        directory.set(&indices, |head| &cells[head]);
        self.compacted_pages += pages.len() as u32;
        record.coded = Some(Coded { pages: count as u32, ..Compacted::CODED });
        let longest = heads.iter().map(|head| head.positions.len()).max().unwrap_or(0) as u32;
        record.compacted = Some(Box::new(Compacted { pages, indices, longest, heads, residue }));
        self.tail_pages[record.slot as usize] = record.tail_page();
        self.changes.reshaped();
    }

    /// Gives back what a compacted node had for its first tokens.
    pub(super) fn release_compacted(&mut self, compacted: &Compacted) {
        release(&mut self.pool, &compacted.pages);
        self.compacted_pages -= compacted.pages.len() as u32;
        if let Some(directory) = &mut self.directory {
            directory.give_back(compacted.indices.clone());
        }
        if let (Some(index), Some(residues)) = (compacted.residue, &mut self.residues) {
            residues.remove(index);
        }
    }
}

impl Compacted {
    /// What a compacted node's pages are, but for their number. They lie in no slab.
    const CODED: Coded = Coded {
        format: KvFormat::Compacted,
        class: SlabClass { key: KvFormat::Compacted.code(), per_slab: SLAB_PAGES },
        pages: 0,
    };

    /// Its indices, and the tokens that its longest head has in them.
    pub(super) fn run(&self) -> (Range<u32>, u32) {
        (self.indices.clone(), self.longest)
    }

    pub(super) fn assert_invariants(&self, directory: &Directory) {
        let (layers, kv_heads) = directory.heads();
        assert_eq!(self.heads.len() as u32, layers * kv_heads);
        assert_eq!(self.longest.div_ceil(PAGE_TOKENS), self.indices.end - self.indices.start);
        let mut most = 0;
        for (head, rows) in (0..).zip(&self.heads) {
            let cells = &directory.head(head / kv_heads, head % kv_heads)
                [self.indices.start as usize..self.indices.end as usize];
            let held: u32 = cells.iter().map(Cell::rows).sum();
            assert_eq!(held as usize, rows.positions.len());
            assert!(rows.biases.is_empty() || rows.biases.len() == rows.positions.len());
            for cell in cells.iter().filter(|cell| cell.rows() > 0) {
                let page = self.pages.iter().position(|&page| page == cell.cell / kv_heads);
                most = most.max(page.expect("a cell of the node's own pages") + 1);
            }
        }
        assert_eq!(most, self.pages.len(), "a page without rows");
    }
}

/// Native pages that hold `rows` rows of each head, `[layers, kv_heads]`: as many as the layer takes that has most
/// cells.
pub(crate) fn pages_for(rows: &[u32], kv_heads: u32) -> u32 {
    let cells = |rows: &[u32]| rows.iter().map(|rows| rows.div_ceil(PAGE_TOKENS)).sum::<u32>();
    let most = rows.chunks_exact(kv_heads as usize).map(cells).max().unwrap_or(0);
    most.div_ceil(kv_heads)
}

fn release(pool: &mut PagePool, pages: &[PageId]) {
    for &page in pages.iter().rev() {
        pool.release(page);
    }
}
