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
        let at = view.pages.len() as u32;
        view.pages.extend_from_slice(self.pages);
        let first_token = self.coded as u32 * PAGE_TOKENS;
        let native = self.coded < self.pages.len() || length_slot.is_some() || self.coded == 0;
        if self.coded > 0 {
            let queries = queries.start..if native { queries.start } else { queries.end };
            let pages = at..at + self.coded as u32;
            view.runs.push(Run { format: self.format, ..run(parent, queries, first_token, pages) });
            parent = Some(view.runs.len() as u32 - 1);
        }
        if native {
            let pages = at + self.coded as u32..view.pages.len() as u32;
            view.runs.push(Run {
                length_slot,
                first_token,
                ..run(parent, queries, self.length - first_token, pages)
            });
        }
    }

    /// The runs of a node of whose last tokens each has one of `queries`: one run of each format for the pages before
    /// those tokens, then one for each page that holds some.
    pub(crate) fn push_chunk(
        &self,
        view: &mut TreeView,
        mut parent: Option<u32>,
        queries: Range<u32>,
    ) {
        let first = self.length - (queries.end - queries.start);
        let before = (first / PAGE_TOKENS) as usize;
        let at = view.pages.len() as u32;
        view.pages.extend_from_slice(self.pages);
        let mut push = |pages: Range<usize>, tokens, queries: Range<u32>, causal| {
            let coded = pages.start < self.coded;
            let pages = at + pages.start as u32..at + pages.end as u32;
            view.runs.push(Run {
                causal,
                format: if coded { self.format } else { KvFormat::Native },
                ..run(parent, queries, tokens, pages)
            });
            parent = Some(view.runs.len() as u32 - 1);
        };
        let coded = before.min(self.coded);
        for pages in [0..coded, coded..before] {
            if !pages.is_empty() {
                let none = queries.start..queries.start;
                let tokens = pages.len() as u32 * PAGE_TOKENS;
                push(pages, tokens, none, 0);
            }
        }
        for page in before..self.pages.len() {
            let begin = page as u32 * PAGE_TOKENS;
            let end = self.length.min(begin + PAGE_TOKENS);
            let own = queries.start + begin.max(first) - first..queries.start + end - first;
            let causal = own.end - own.start;
            push(page..page + 1, end - begin, own, causal);
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
