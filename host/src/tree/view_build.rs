//! From nodes to the planner's view of them.

use std::ops::Range;

use kernels_gpu::abi::{NONE, PAGE_TOKENS};

use super::node::{BlockKey, Content, State};
use super::own_pages::{self, OwnPages};
use super::scratch::Marks;
use super::seen_draft::{SeenDraft, page_bits};
use super::view_grown::GrownRuns;
use super::{ForestError, NodeKey, ResidueRun, Run, TokenForest, TreeView};
use crate::format::KvFormat;

/// Memory that [`TokenForest::view_into`] uses again; one serves any forest.
#[derive(Clone, Debug, Default)]
pub struct ViewScratch {
    marks: Marks,
    /// By length slot, where marked: index into `seen`.
    seen_at: Vec<u32>,
    /// The nodes that some query sees, as first met.
    seen: Vec<Seen>,
    /// Depth-first search: indices into `seen` still to visit.
    stack: Vec<u32>,
    blocks: Vec<SeenBlock>,
    drafts: Vec<SeenDraft>,
    bits: Vec<u64>,
    grown: GrownRuns,
}

/// A node that some query sees. Links are indices into [`ViewScratch::seen`], or [`NONE`].
#[derive(Clone, Copy, Debug)]
struct Seen {
    node: NodeKey,
    parent: u32,
    first_child: u32,
    last_child: u32,
    next: u32,
    /// First of the caller's rows at this node, if `rows` is not 0.
    row: u32,
    /// How many of the node's last tokens have a row.
    rows: u32,
    /// The node's run; for a draft node its block's.
    run: u32,
    /// A draft node's place in [`ViewScratch::drafts`].
    draft: u32,
}

/// A draft block that some query sees.
#[derive(Clone, Copy, Debug)]
struct SeenBlock {
    block: BlockKey,
    /// Its run, or the first of its runs if it has grown.
    run: u32,
    /// The first of those in [`GrownRuns::first`].
    grown: Option<u32>,
    /// First of its nodes in [`ViewScratch::drafts`]; they end where the next block's begin.
    begin: u32,
}

impl TokenForest {
    /// What the queries at `queries` see; see [`TokenForest::view_into`].
    ///
    /// # Errors
    /// Those of [`TokenForest::view_into`].
    pub fn view(&self, queries: &[NodeKey]) -> Result<TreeView, ForestError> {
        let mut view = TreeView::default();
        self.view_into(queries, &mut ViewScratch::default(), &mut view)?;
        Ok(view)
    }

    /// Overwrites `view` with what the queries at `queries` see, in time proportional to the number of
    /// those nodes and their ancestors (and pages), however large the forest is.
    ///
    /// Trees come in the order in which `queries` reaches them, and so do siblings; a list in depth-first
    /// order keeps its order. Nodes that no query sees are left out. Of a draft block, one run holds
    /// whatever is left, masked. A run has a `length_slot` unless its node has been forked or is a
    /// draft.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], [`ForestError::DuplicateNode`], [`ForestError::Empty`], or
    /// [`ForestError::TooManyQueries`]. `view` is as it was then.
    pub fn view_into(
        &self,
        queries: &[NodeKey],
        scratch: &mut ViewScratch,
        view: &mut TreeView,
    ) -> Result<(), ForestError> {
        let last_tokens = queries.iter().map(|&node| (node, 1));
        self.view_of(last_tokens, scratch, view)
    }

    /// As [`TokenForest::view_into`], with a query for each of the last tokens of nodes: `(node, n)` asks for those at
    /// the node's last `n`, in order. Each sees the path to the node and the node's tokens up to its own, so this is
    /// the view of a prefill (`n` new tokens of a prompt), of decoding (1) and of both at once.
    ///
    /// The pages that hold such tokens become a chain of runs of one page each, see [`Run::causal`]; a node asked for
    /// with more than one token has no `length_slot`.
    ///
    /// # Errors
    /// Those of [`TokenForest::view_into`]; [`ForestError::TokenRange`] for more tokens than the node holds,
    /// [`ForestError::Empty`] for 0.
    pub fn view_tokens_into(
        &self,
        queries: &[(NodeKey, u32)],
        scratch: &mut ViewScratch,
        view: &mut TreeView,
    ) -> Result<(), ForestError> {
        self.view_of(queries.iter().copied(), scratch, view)
    }

    fn view_of(
        &self,
        queries: impl Iterator<Item = (NodeKey, u32)> + Clone,
        scratch: &mut ViewScratch,
        view: &mut TreeView,
    ) -> Result<(), ForestError> {
        scratch.collect(self, queries)?;
        view.runs.clear();
        view.pages.clear();
        view.masks.clear();
        view.query_order.clear();
        view.residues.clear();
        scratch.lay_out(self, view);
        view.queries = view.query_order.len() as u32;
        close_query_ranges(&mut view.runs);
        scratch.lay_out_blocks(self, view);
        Ok(())
    }
}

impl ViewScratch {
    /// Makes the runs of drafts that have grown for items of `queries` queries.
    pub(crate) fn set_tile(&mut self, queries: u32) {
        self.grown.set_tile(queries);
    }

    /// Finds the nodes that `queries` see, and links them as trees of their own.
    ///
    /// `seen[0]` stands above the roots.
    fn collect(
        &mut self,
        forest: &TokenForest,
        queries: impl Iterator<Item = (NodeKey, u32)> + Clone,
    ) -> Result<(), ForestError> {
        let rows = queries.clone().map(|(_, tokens)| tokens as usize);
        let queries_asked = rows.fold(0, usize::saturating_add);
        if queries_asked > TokenForest::MAX_QUERIES {
            let queries = queries_asked;
            return Err(ForestError::TooManyQueries { queries });
        }
        self.marks.begin(forest.lengths.len());
        if self.seen_at.len() < forest.lengths.len() {
            self.seen_at.resize(forest.lengths.len(), NONE);
        }
        self.seen.clear();
        self.seen.push(Seen::new(NodeKey::default()));
        let mut row = 0;
        for (index, (node, tokens)) in queries.enumerate() {
            let at = self.climb(forest, node)?;
            let seen = &mut self.seen[at as usize];
            if seen.rows != 0 {
                return Err(ForestError::DuplicateNode { node, index });
            }
            check_tokens(forest, node, tokens)?;
            (seen.row, seen.rows) = (row as u32, tokens);
            row += tokens as usize;
        }
        if row == 0 {
            let argument = "queries";
            return Err(ForestError::Empty { argument });
        }
        Ok(())
    }

    /// Adds the nodes from `query` up to the first one already seen; the index of `query`.
    fn climb(&mut self, forest: &TokenForest, query: NodeKey) -> Result<u32, ForestError> {
        let mut record = forest.node(query)?;
        let mut node = query;
        let mut first = NONE;
        let mut below = NONE;
        loop {
            let is_new = self.marks.insert(record.slot);
            if is_new {
                self.seen_at[record.slot as usize] = self.seen.len() as u32;
                self.seen.push(Seen::new(node));
            }
            let at = self.seen_at[record.slot as usize];
            if below == NONE {
                first = at;
            } else {
                self.link(at, below);
            }
            if !is_new {
                return Ok(first);
            }
            let Some(parent) = record.parent else {
                self.link(0, at);
                return Ok(first);
            };
            below = at;
            node = parent;
            record = &forest.nodes[parent];
        }
    }

    fn link(&mut self, parent: u32, child: u32) {
        let last = self.seen[parent as usize].last_child;
        if last == NONE {
            self.seen[parent as usize].first_child = child;
        } else {
            self.seen[last as usize].next = child;
        }
        self.seen[parent as usize].last_child = child;
        self.seen[child as usize].parent = parent;
    }

    /// Visits the seen nodes depth first: numbers the queries, and makes the runs, a draft block's
    /// still without pages.
    fn lay_out(&mut self, forest: &TokenForest, view: &mut TreeView) {
        self.blocks.clear();
        self.drafts.clear();
        self.grown.first.clear();
        self.stack.clear();
        self.stack.push(self.seen[0].first_child);
        while let Some(at) = self.stack.pop() {
            let seen = self.seen[at as usize];
            if seen.next != NONE {
                self.stack.push(seen.next);
            }
            if seen.first_child != NONE {
                self.stack.push(seen.first_child);
            }
            let query = view.query_order.len() as u32;
            view.query_order.extend(seen.row..seen.row + seen.rows);
            let queries = query..query + seen.rows;
            let record = &forest.nodes[seen.node];
            let length = forest.lengths[record.slot as usize];
            let parent = self.seen[seen.parent as usize];
            match &record.content {
                Content::Owned { pages, state } => {
                    let parent = (parent.run != NONE).then_some(parent.run);
                    let own = OwnPages {
                        pages,
                        coded: record.coded_pages(),
                        format: record.coded.map_or(KvFormat::Native, |coded| coded.format),
                        compacted: record.compacted.as_ref().map(|compacted| compacted.run()),
                        length,
                    };
                    let first = view.runs.len() as u32;
                    if seen.rows > 1 {
                        own.push_chunk(view, parent, queries);
                    } else {
                        let slot = (*state != State::Sealed).then_some(record.slot);
                        own.push_whole(view, parent, queries, slot);
                    }
                    let run = view.runs.len() as u32 - 1;
                    if let Some(index) = record.residue() {
                        // The first of the node's runs has all its queries.
                        view.residues.push(ResidueRun { run: first, index });
                    }
                    self.seen[at as usize].run = run;
                }
                Content::Draft { block, begin, .. } => {
                    let grown = forest.blocks[*block].grown;
                    let run = self.block_run((*block, grown), parent, &queries, view);
                    self.seen[at as usize].run = run;
                    self.seen[at as usize].draft = self.drafts.len() as u32;
                    self.drafts.push(SeenDraft {
                        parent: parent.draft,
                        begin: *begin,
                        end: begin + length,
                        below: queries.clone(),
                        queries,
                    });
                }
            }
        }
    }

    /// The run of `block`, made when its first node is met, with the queries of the node that is met now. Nothing else
    /// is below its trunk, so its nodes are met one after another. Of a grown one the trunk's run, which those of its
    /// tiles are below.
    fn block_run(
        &mut self,
        (block, grown): (BlockKey, bool),
        parent: Seen,
        queries: &Range<u32>,
        view: &mut TreeView,
    ) -> u32 {
        let begin = self.drafts.len() as u32;
        let known = self.blocks.last().filter(|last| last.block == block).map(|last| last.run);
        let run = known.unwrap_or(view.runs.len() as u32);
        if known.is_none() {
            let grown = grown.then_some(self.grown.first.len() as u32);
            self.blocks.push(SeenBlock { block, run, grown, begin });
        }
        if grown {
            self.grown.push(view, parent.run, (begin, known.is_none()), queries);
            return parent.run;
        }
        if known.is_none() {
            view.runs.push(own_pages::run(Some(parent.run), queries.clone(), 0, 0..0));
        }
        view.runs[run as usize].queries.end = queries.end;
        run
    }

    /// Fills in pages and masks of the blocks' runs.
    fn lay_out_blocks(&mut self, forest: &TokenForest, view: &mut TreeView) {
        for (index, seen) in self.blocks.iter().enumerate() {
            let next = self.blocks.get(index + 1);
            let end = next.map_or(self.drafts.len(), |next| next.begin as usize);
            let drafts = &mut self.drafts[seen.begin as usize..end];
            let block = &forest.blocks[seen.block];
            if let Some(first) = seen.grown {
                let last = next_grown(&self.blocks[index + 1..], &self.grown);
                let runs = first as usize..last;
                self.grown.lay_out(view, block, drafts, (seen.run, runs, seen.begin));
                continue;
            }
            let run = &mut view.runs[seen.run as usize];
            let first_page = view.pages.len() as u32;
            run.mask = Some(view.masks.len() as u32);
            for (&page, begin) in block.pages.iter().zip((0..).step_by(PAGE_TOKENS as usize)) {
                if page == NONE {
                    continue;
                }
                view.pages.push(page);
                run.tokens += (block.tokens - begin).min(PAGE_TOKENS);
                let row = view.masks.len();
                view.masks.resize(row + run.queries.len(), 0);
                self.bits.clear();
                for draft in &*drafts {
                    let above = match draft.parent {
                        NONE => 0,
                        parent => self.bits[(parent - seen.begin) as usize],
                    };
                    let bits = above | page_bits(draft.begin, draft.end, begin);
                    self.bits.push(bits);
                    for (query, end) in draft.queries.clone().zip(draft.ends()) {
                        view.masks[row + (query - run.queries.start) as usize] =
                            above | page_bits(draft.begin, end, begin);
                    }
                }
            }
            run.pages = first_page..view.pages.len() as u32;
        }
    }
}

impl Seen {
    fn new(node: NodeKey) -> Self {
        Self {
            node,
            parent: NONE,
            first_child: NONE,
            last_child: NONE,
            next: NONE,
            row: NONE,
            rows: 0,
            run: NONE,
            draft: NONE,
        }
    }
}

/// Where the runs of the next grown draft begin.
fn next_grown(blocks: &[SeenBlock], grown: &GrownRuns) -> usize {
    let next = blocks.iter().find_map(|block| block.grown);
    next.map_or(grown.first.len(), |first| first as usize)
}

fn check_tokens(forest: &TokenForest, node: NodeKey, tokens: u32) -> Result<(), ForestError> {
    let argument = "queries: tokens of a node";
    let length = forest.length_of(node);
    match tokens {
        0 => Err(ForestError::Empty { argument }),
        // An empty leaf has a query as well: it sees what is above.
        1 => Ok(()),
        _ if tokens > length => {
            Err(ForestError::TokenRange { node, begin: 0, end: tokens, length })
        }
        _ if length - tokens < forest.compacted_tokens(node)? => forest.check_whole(node),
        _ => Ok(()),
    }
}

/// Spreads every run's queries, its own so far, over those of its descendants.
pub(crate) fn close_query_ranges(runs: &mut [Run]) {
    for index in (0..runs.len()).rev() {
        let end = runs[index].queries.end;
        if let Some(parent) = runs[index].parent {
            let parent = &mut runs[parent as usize].queries;
            parent.end = parent.end.max(end);
        }
    }
}
