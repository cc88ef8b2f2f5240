//! The runs of one node's pages.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;

use super::{Run, TreeView};
use crate::cache::PageId;
use crate::format::KvFormat;

/// The pages of a node that is no draft.
pub(crate) struct OwnPages<'a> {
    pub(crate) pages: &'a [PageId],
    /// How many of the first are of `format`; the others are native.
    pub(crate) coded: usize,
    pub(crate) format: KvFormat,
    /// Of compacted ones: the directory's indices instead, and the tokens of the longest head.
    pub(crate) compacted: Option<(Range<u32>, u32)>,
    pub(crate) length: u32,
}

impl OwnPages<'_> {
    /// The node's run; two, where its first pages are of another format.
    pub(crate) fn push_whole(
        &self,
        view: &mut TreeView,
        mut parent: Option<u32>,
        queries: Range<u32>,
        length_slot: Option<u32>,
    ) {
        let first_token = self.coded as u32 * PAGE_TOKENS;
        let (pages, tokens) = self.push_first(view, self.coded);
        let rest = view.pages.len() as u32;
        view.pages.extend_from_slice(&self.pages[self.coded..]);
        let native = self.coded < self.pages.len() || length_slot.is_some() || pages.is_empty();
        if !pages.is_empty() {
            let queries = queries.start..if native { queries.start } else { queries.end };
            view.runs.push(Run { format: self.format, ..run(parent, queries, tokens, pages) });
            parent = Some(view.runs.len() as u32 - 1);
        }
        if native {
            let pages = rest..view.pages.len() as u32;
            view.runs.push(Run {
                length_slot,
                first_token,
                ..run(parent, queries, self.length - first_token, pages)
            });
        }
    }

    /// Adds the first `count` pages to the view, which are of the format; where they are, and the tokens in them.
    fn push_first(&self, view: &mut TreeView, count: usize) -> (Range<u32>, u32) {
        let at = view.pages.len() as u32;
        let tokens = match &self.compacted {
            Some((indices, tokens)) => {
                view.pages.extend(indices.clone());
                *tokens
            }
            None => {
                view.pages.extend_from_slice(&self.pages[..count]);
                count as u32 * PAGE_TOKENS
            }
        };
        (at..view.pages.len() as u32, tokens)
    }

    /// The runs of a node of whose last tokens each has one of `queries`: one run of each format for the pages before
    /// those tokens, then one for each page that holds some. No such token is compacted.
    pub(crate) fn push_chunk(
        &self,
        view: &mut TreeView,
        mut parent: Option<u32>,
        queries: Range<u32>,
    ) {
        let first = self.length - (queries.end - queries.start);
        let before = (first / PAGE_TOKENS) as usize;
        let coded = before.min(self.coded);
        let (first_pages, first_tokens) = self.push_first(view, coded);
        let rest = view.pages.len() as u32;
        view.pages.extend_from_slice(&self.pages[coded..]);
        let mut push = |format, pages: Range<u32>, tokens, queries: Range<u32>, causal| {
            if !pages.is_empty() {
                let run = run(parent, queries, tokens, pages);
                view.runs.push(Run { causal, format, ..run });
                parent = Some(view.runs.len() as u32 - 1);
            }
        };
        let at = |page: usize| rest + (page - coded) as u32;
        let none = queries.start..queries.start;
        push(self.format, first_pages, first_tokens, none.clone(), 0);
        let tokens = (before - coded) as u32 * PAGE_TOKENS;
        push(KvFormat::Native, rest..at(before), tokens, none, 0);
        for page in before..self.pages.len() {
            let begin = page as u32 * PAGE_TOKENS;
            let end = self.length.min(begin + PAGE_TOKENS);
            let own = queries.start + begin.max(first) - first..queries.start + end - first;
            let causal = own.end - own.start;
            let format = if page < self.coded { self.format } else { KvFormat::Native };
            push(format, at(page)..at(page + 1), end - begin, own, causal);
        }
    }
}

/// A run of native pages that does not grow and that all its queries see.
pub(crate) fn run(parent: Option<u32>, queries: Range<u32>, tokens: u32, pages: Range<u32>) -> Run {
    Run {
        parent,
        queries,
        tokens,
        format: KvFormat::Native,
        first_token: 0,
        pages,
        length_slot: None,
        mask: None,
        causal: 0,
    }
}
