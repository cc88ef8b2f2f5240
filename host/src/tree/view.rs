//! What the planner sees of a forest: flat arrays in depth-first order.

use std::ops::Range;

use crate::cache::PageId;
use crate::format::KvFormat;

/// A run of pages that the same queries see: a node's own tokens, or a block of small nodes that share
/// pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the parent's run; `None` for a root. Parents precede children.
    pub parent: Option<u32>,
    /// Queries below or at this run: contiguous, nested in the parent's, siblings in order.
    pub queries: Range<u32>,
    /// Tokens held now.
    pub tokens: u32,
    /// How the run's pages are stored.
    pub format: KvFormat,
    /// Tokens that the counter of [`Run::length_slot`] counts before the run's own.
    pub first_token: u32,
    /// The run's pages, as a range of [`TreeView::pages`]; `ceil(tokens / 64)` of them.
    pub pages: Range<u32>,
    /// The counter that holds the run's length, if it may still grow; growth adds to the last page or
    /// adds pages.
    pub length_slot: Option<u32>,
    /// Start in [`TreeView::masks`] for a run whose pages hold several small nodes: word
    /// `mask + page * queries.len() + (q - queries.start)`, bit `t` for token `t` of that page.
    pub mask: Option<u32>,
    /// Queries of the run's own tokens, the first ones of [`Run::queries`]: the last `causal` tokens have one each,
    /// and it sees the run's tokens up to its own. 0 if every query sees all tokens; otherwise the run is one
    /// page.
    pub causal: u32,
}

impl Run {
    /// How many tokens of the run's one page the first of `queries` sees, if each after it sees one more: of a run
    /// that is [`Run::causal`], for queries that begin with one of its own.
    pub fn causal_tokens(&self, queries: &Range<u32>) -> Option<u32> {
        let own = self.queries.start + self.causal;
        (queries.start < own).then(|| self.tokens + 1 - (own - queries.start))
    }
}

/// A forest in depth-first order, ready to be planned.
///
/// Queries are numbered in depth-first order, a node's own query before those of its children, so the
/// queries of every node are one contiguous range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeView {
    /// All runs, parents before children, subtrees contiguous.
    pub runs: Vec<Run>,
    /// Page ids of all runs.
    pub pages: Vec<PageId>,
    /// Masks of all runs that have one.
    pub masks: Vec<u64>,
    /// Number of queries.
    pub queries: u32,
    /// Query `q` is row `query_order[q]` of what the view was asked for: `[queries]`. A node asked for with several
    /// tokens has as many rows. What the caller keeps in its own order (q, output, LSE) is gathered and scattered by it.
    pub query_order: Vec<u32>,
    /// Nodes of which rows were folded away.
    pub residues: Vec<ResidueRun>,
}

/// A node that has a residue: every query of its runs gets one more partial result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidueRun {
    /// Index of a run of the node.
    pub run: u32,
    /// The residue's number in [`Residues`](super::Residues).
    pub index: u32,
}
