//! Pages of nodes in other formats.
//!
//! A node's first pages, all full, may be of one other format; the pages after them are native. Rewriting takes two
//! steps, between which the caller moves the data: new pages are taken, then the node gets them and gives back the old.

use kernels_gpu::abi::{NONE, PAGE_TOKENS};

use super::node::{Content, Node};
use super::{ForestError, NodeKey, TokenForest};
use crate::cache::{PageId, PagePool, SlabClass};
use crate::format::KvFormat;

/// The first pages of a node, if they are not native.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coded {
    pub(super) format: KvFormat,
    pub(super) class: SlabClass,
    /// How many pages; not 0.
    pub(super) pages: u32,
}

/// Pages of a node that are to be rewritten, and the pages that were taken for them.
#[derive(Debug)]
#[must_use]
pub(crate) struct Recoding {
    node: NodeKey,
    /// What the pages are to be.
    format: KvFormat,
    class: SlabClass,
    pub(crate) from: Vec<PageId>,
    pub(crate) to: Vec<PageId>,
}

/// Tokens of a path that lie in pages of one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) format: KvFormat,
    /// Counted from the first token asked for.
    pub(crate) tokens: std::ops::Range<usize>,
}

impl TokenForest {
    /// The format of the node's first pages, and how many of its tokens they hold; [`KvFormat::Native`] and 0 for a node
    /// whose pages are all native, as those after the first ones always are.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub fn format(&self, node: NodeKey) -> Result<(KvFormat, u32), ForestError> {
        let record = self.node(node)?;
        let format = record.coded.map_or(KvFormat::Native, |coded| coded.format);
        Ok((format, record.coded_tokens()))
    }

    /// Takes pages of `format` for the full pages of `node` that are native; `None` if there are none.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Draft`], [`ForestError::OtherFormat`], [`ForestError::Compacted`], or
    /// too few free pages ([`ForestError::Pool`]).
    pub(crate) fn begin_seal(
        &mut self,
        node: NodeKey,
        format: KvFormat,
        class: SlabClass,
    ) -> Result<Option<Recoding>, ForestError> {
        let record = self.node(node)?;
        let Content::Owned { pages, .. } = &record.content else {
            return Err(ForestError::Draft { node });
        };
        self.check_whole(node)?;
        let before = record.coded_pages();
        match record.coded {
            Some(coded) if coded.format != format => {
                let format = coded.format;
                return Err(ForestError::OtherFormat { node, format });
            }
            _ => {}
        }
        let full = (self.length_of(node) / PAGE_TOKENS) as usize;
        let from = pages[before..full].to_vec();
        if from.is_empty() {
            return Ok(None);
        }
        let to = self.pool.allocate_in_slabs(class, from.len() as u32)?;
        Ok(Some(Recoding { node, format, class, from, to }))
    }

    /// Takes native pages for those of `node` that are not; `None` if there are none.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::Compacted`], or too few free pages ([`ForestError::Pool`]).
    pub(crate) fn begin_unseal(&mut self, node: NodeKey) -> Result<Option<Recoding>, ForestError> {
        self.check_whole(node)?;
        let record = self.node(node)?;
        let (Some(coded), Content::Owned { pages, .. }) = (record.coded, &record.content) else {
            return Ok(None);
        };
        let from = pages[..coded.pages as usize].to_vec();
        let to = self.pool.allocate_many(coded.pages)?;
        Ok(Some(Recoding { node, format: KvFormat::Native, class: coded.class, from, to }))
    }

    /// Gives the pages back that were taken: nothing was rewritten.
    pub(crate) fn abandon(&mut self, recoding: Recoding) {
        release(&mut self.pool, recoding.to, recoding.format, recoding.class);
    }

    /// Gives the node its new pages, and the old ones back.
    pub(crate) fn finish(&mut self, recoding: Recoding) {
        let Recoding { node, format, class, from, to } = recoding;
        let record = &mut self.nodes[node];
        let sealed = format != KvFormat::Native;
        let before = if sealed { record.coded_pages() } else { 0 };
        let old = record.coded.map_or(KvFormat::Native, |coded| coded.format);
        record.coded = sealed.then_some(Coded { format, class, pages: (before + to.len()) as u32 });
        if let Content::Owned { pages, .. } = &mut record.content {
            pages[before..before + to.len()].copy_from_slice(&to);
        }
        self.tail_pages[record.slot as usize] = record.tail_page();
        release(&mut self.pool, from, if sealed { KvFormat::Native } else { old }, class);
        self.changes.reshaped();
    }

    /// The nodes that [`TokenForest::merge_chain`] would move tokens of out of pages that are not native, and how many
    /// such pages they have.
    pub(crate) fn coded_below(&self, node: NodeKey) -> Result<(Vec<NodeKey>, u64), ForestError> {
        let mut chain = self.only_children(node)?;
        chain.iter().try_for_each(|&below| self.check_whole(below))?;
        chain.retain(|&below| self.nodes[below].coded.is_some());
        let pages = chain.iter().map(|&below| self.nodes[below].coded_pages() as u64);
        let pages = pages.sum();
        Ok((chain, pages))
    }

    /// The nearest page above `node`, or of its own, that is of `format`.
    pub(crate) fn page_above(&self, node: NodeKey, format: KvFormat) -> Option<PageId> {
        let mut next = Some(node);
        while let Some(key) = next {
            let record = self.nodes.get(key)?;
            let coded = record.coded.filter(|coded| coded.format == format);
            if let (Some(_), Content::Owned { pages, .. }) = (coded, &record.content) {
                return pages.first().copied();
            }
            next = record.parent;
        }
        None
    }

    /// The formats of tokens `tokens` of the path to `node`.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`].
    pub(crate) fn path_spans(
        &self,
        node: NodeKey,
        tokens: std::ops::Range<u32>,
    ) -> Result<Vec<Span>, ForestError> {
        self.node(node)?;
        if tokens.start > tokens.end {
            return Ok(Vec::new());
        }
        let path: Vec<_> =
            std::iter::successors(Some(node), |&key| self.nodes[key].parent).collect();
        let mut spans: Vec<Span> = Vec::new();
        let mut before = 0u64;
        let asked = u64::from(tokens.start)..u64::from(tokens.end);
        for &node in path.iter().rev() {
            let record = &self.nodes[node];
            let length = u64::from(self.length_of(node));
            let coded = u64::from(record.coded_tokens());
            let format = record.coded.map_or(KvFormat::Native, |coded| coded.format);
            for (format, part) in [(format, 0..coded), (KvFormat::Native, coded..length)] {
                let clamp =
                    |token: u64| (before + token).clamp(asked.start, asked.end) - asked.start;
                let tokens = clamp(part.start) as usize..clamp(part.end) as usize;
                match spans.last_mut() {
                    _ if tokens.is_empty() => {}
                    Some(last) if last.format == format => last.tokens.end = tokens.end,
                    _ => spans.push(Span { format, tokens }),
                }
            }
            before += length;
        }
        Ok(spans)
    }

    /// Whether tokens `tokens` of `node` can be written: they are in native pages.
    pub(crate) fn check_native(
        &self,
        node: NodeKey,
        tokens: std::ops::Range<u32>,
    ) -> Result<(), ForestError> {
        let record = self.node(node)?;
        match record.coded {
            _ if tokens.start >= record.coded_tokens() || tokens.is_empty() => Ok(()),
            Some(_) if record.compacted.is_some() => self.check_whole(node),
            Some(coded) => Err(ForestError::InFormat {
                node,
                tokens: record.coded_tokens(),
                format: coded.format,
            }),
            _ => Ok(()),
        }
    }

    /// Gives a node's pages back; those of compacted tokens are [`Self::release_compacted`]'s.
    pub(super) fn release_pages(&mut self, pages: Vec<PageId>, coded: Option<Coded>) {
        let mut pages = pages;
        if let Some(coded) = coded {
            let first = pages.drain(..coded.pages as usize).collect();
            if coded.format != KvFormat::Compacted {
                release(&mut self.pool, first, coded.format, coded.class);
            }
        }
        for page in pages {
            self.pool.release(page);
        }
    }
}

impl Node {
    /// How many of the node's first pages are not native.
    pub(super) fn coded_pages(&self) -> usize {
        self.coded.map_or(0, |coded| coded.pages as usize)
    }

    /// How many of the node's first tokens are in pages that are not native.
    pub(super) fn coded_tokens(&self) -> u32 {
        self.coded_pages() as u32 * PAGE_TOKENS
    }

    /// Parts its first `pages` pages from the others: those of the former that are not native.
    pub(super) fn take_coded(&mut self, pages: u32) -> Option<Coded> {
        let coded = self.coded.take()?;
        let of = |pages| (pages > 0).then_some(Coded { pages, ..coded });
        self.coded = of(coded.pages.saturating_sub(pages));
        of(coded.pages.min(pages))
    }

    /// The last page, if it is native.
    pub(super) fn tail_page(&self) -> PageId {
        match &self.content {
            Content::Owned { pages, .. } => {
                pages[self.coded_pages()..].last().copied().unwrap_or(NONE)
            }
            Content::Draft { .. } => NONE,
        }
    }
}

fn release(pool: &mut PagePool, pages: Vec<PageId>, format: KvFormat, class: SlabClass) {
    for page in pages {
        match format {
            KvFormat::Native => drop(pool.release(page)),
            _ => pool.release_in_slab(class, page),
        }
    }
}
