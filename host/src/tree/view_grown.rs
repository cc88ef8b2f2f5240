//! What the planner sees of drafts that have grown: a run for each row tile, with the pages that its queries see.
//!
//! As one run such a draft would have masks of all its queries by all its pages, and every query would be shown pages
//! of which it sees nothing.

use std::ops::Range;

use kernels_gpu::abi::{NONE, PAGE_TOKENS};

use super::node::Block;
use super::own_pages;
use super::seen_draft::{SeenDraft, page_bits};
use super::{Run, TreeView};

/// Queries of a run, if nobody says how many an item has.
const TILE: u32 = 64;

/// The runs of the grown draft at hand; a node's queries are of one run.
#[derive(Clone, Debug, Default)]
pub(super) struct GrownRuns {
    /// Queries that a run has, about.
    tile: Option<u32>,
    /// By run, the first of its nodes in the list of drafts.
    pub(super) first: Vec<u32>,
    /// Where a page of the block is in the run at hand; [`NONE`] where it is not.
    places: Vec<u32>,
    /// Pages of the run at hand, by their number in the block.
    pages: Vec<u32>,
    /// Nodes that some query of the run at hand sees, and those queries.
    seen: Vec<(u32, Range<u32>)>,
}

impl GrownRuns {
    /// Makes runs of about `queries` queries from now on.
    pub(super) fn set_tile(&mut self, queries: u32) {
        self.tile = Some(queries.max(1));
    }

    /// Adds `queries` of the node that is the next in the list of drafts, `draft`, to the run made last or to a new one
    /// below `trunk`'s.
    pub(super) fn push(
        &mut self,
        view: &mut TreeView,
        trunk: u32,
        (draft, is_first): (u32, bool),
        queries: &Range<u32>,
    ) {
        let tile = self.tile.unwrap_or(TILE);
        let full = |run: &Run| {
            run.queries.start < run.queries.end && queries.end - run.queries.start > tile
        };
        if is_first || (!queries.is_empty() && view.runs.last().is_some_and(full)) {
            self.first.push(draft);
            view.runs.push(own_pages::run(Some(trunk), queries.clone(), 0, 0..0));
        }
        let last = view.runs.last_mut().expect("it was just seen to");
        last.queries.end = queries.end;
    }

    /// Fills in pages and masks of a draft's runs: they begin with `first_run`, `runs` are their places in
    /// [`Self::first`], and `base` is where the draft's nodes, `drafts`, begin in the list of all.
    pub(super) fn lay_out(
        &mut self,
        view: &mut TreeView,
        block: &Block,
        drafts: &mut [SeenDraft],
        (first_run, runs, base): (u32, Range<usize>, u32),
    ) {
        spread_queries(drafts, base);
        self.places.clear();
        self.places.resize(block.pages.len(), NONE);
        let last_page = block.pages.len() as u32 - 1;
        for (run, at) in (first_run as usize..).zip(runs.clone()) {
            let begin = (self.first[at] - base) as usize;
            let end = match at + 1 < runs.end {
                true => (self.first[at + 1] - base) as usize,
                false => drafts.len(),
            };
            let queries = view.runs[run].queries.clone();
            self.find(drafts, begin..end, base, &queries);
            let pages = view.pages.len() as u32;
            view.pages.extend(self.pages.iter().map(|&page| block.pages[page as usize]));
            let held = self.pages.len() as u32;
            // All pages but the block's last are full.
            let missing = match self.pages.last() {
                Some(&page) if page == last_page => (last_page + 1) * PAGE_TOKENS - block.tokens,
                _ => 0,
            };
            let mask = view.masks.len();
            let width = queries.len();
            view.masks.resize(mask + held as usize * width, 0);
            self.mark(drafts, &mut view.masks[mask..], &queries);
            let run = &mut view.runs[run];
            run.mask = Some(mask as u32);
            run.pages = pages..pages + held;
            run.tokens = held * PAGE_TOKENS - missing;
            for &page in &self.pages {
                self.places[page as usize] = NONE;
            }
        }
    }

    /// Finds what `queries` see: those of the run whose nodes are `drafts[own]`, and what is above the first of them.
    fn find(&mut self, drafts: &[SeenDraft], own: Range<usize>, base: u32, queries: &Range<u32>) {
        self.seen.clear();
        self.pages.clear();
        let mut above = drafts[own.start].parent;
        while above != NONE {
            let at = above - base;
            self.see(at, &drafts[at as usize], queries);
            above = drafts[at as usize].parent;
        }
        for at in own {
            self.see(at as u32, &drafts[at], queries);
        }
        self.pages.sort_unstable();
        for (place, &page) in (0..).zip(&self.pages) {
            self.places[page as usize] = place;
        }
    }

    fn see(&mut self, at: u32, draft: &SeenDraft, queries: &Range<u32>) {
        let by = draft.below.start.max(queries.start)..draft.below.end.min(queries.end);
        if by.is_empty() {
            return;
        }
        self.seen.push((at, by));
        for page in draft.begin / PAGE_TOKENS..draft.end.div_ceil(PAGE_TOKENS) {
            let place = &mut self.places[page as usize];
            if *place == NONE {
                *place = 0;
                self.pages.push(page);
            }
        }
    }

    /// Sets the bits of what was found, in `masks`, `[pages, queries]`.
    fn mark(&self, drafts: &[SeenDraft], masks: &mut [u64], queries: &Range<u32>) {
        let width = queries.len();
        for (at, by) in &self.seen {
            let draft = &drafts[*at as usize];
            for page in draft.begin / PAGE_TOKENS..draft.end.div_ceil(PAGE_TOKENS) {
                let row = self.places[page as usize] as usize * width;
                let words = &mut masks[row..row + width];
                let first = page * PAGE_TOKENS;
                let bits = page_bits(draft.begin, draft.end, first);
                let place = |query: u32| (query - queries.start) as usize;
                words[place(by.start)..place(by.end)].iter_mut().for_each(|word| *word |= bits);
                // Queries of tokens of the node itself see it up to their own.
                let own = draft.queries.clone().zip(draft.ends());
                for (query, end) in own.filter(|(query, _)| queries.contains(query)) {
                    let hidden = bits & !page_bits(draft.begin, end, first);
                    words[place(query)] &= !hidden;
                }
            }
        }
    }
}

/// Gives each node the queries of those below it too.
fn spread_queries(drafts: &mut [SeenDraft], base: u32) {
    for at in (0..drafts.len()).rev() {
        let end = drafts[at].below.end;
        if drafts[at].parent != NONE {
            let above = &mut drafts[(drafts[at].parent - base) as usize].below;
            above.end = above.end.max(end);
        }
    }
}
