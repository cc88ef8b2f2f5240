//! The order in which KV is met: a view's runs as pieces, grouped into units.
//!
//! A *unit* is a set of pieces that holds everything some queries see: a tree, or for a tree with more
//! queries than an item may hold, one row tile of it; for [`Grouping::PerQuery`](super::Grouping) one
//! query's path. Units share no query. Row tiles follow one another, each in depth-first order
//! (tile-major), so that shares that read the same pages for different tiles do so at about the same
//! time, and a tile's pieces can merge into few items.

use std::ops::Range;

use super::PlanError;
use super::config::MAX_QUERIES;
use super::cost::PAGE_GROUPS;
use crate::tree::{Run, TreeView};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::CORE;

/// Some pages of a run, for some of its queries.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) run: u32,
    pub(super) queries: Range<u32>,
    /// Pages, counted within the run.
    pub(super) pages: Range<u32>,
    /// Token groups in those pages; all but the run's last page are full.
    pub(super) groups: u32,
}

impl Piece {
    fn whole(index: usize, run: &Run, queries: Range<u32>) -> Self {
        Self {
            run: index as u32,
            queries,
            pages: 0..run.pages.end - run.pages.start,
            groups: run.tokens.div_ceil(CORE),
        }
    }
}

/// Pieces that hold everything their queries see.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) pieces: Range<u32>,
    pub(super) queries: Range<u32>,
    pub(super) groups: u64,
}

#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) pieces: Vec<Piece>,
    pub(super) units: Vec<Unit>,
    /// Row tiles of the tree at hand: first query of each, and an end.
    edges: Vec<u32>,
    /// Pieces of each tile, then where its next piece goes.
    places: Vec<u32>,
    /// Runs on the path of the query at hand.
    path: Vec<u32>,
}

/// Whether a run asks for anything: someone sees it, and it holds tokens or may come to.
fn counts(run: &Run) -> bool {
    !run.queries.is_empty() && (run.tokens > 0 || run.length_slot.is_some())
}

impl Sequence {
    fn clear(&mut self) {
        self.pieces.clear();
        self.units.clear();
    }

    fn close_unit(&mut self, first: usize, queries: Range<u32>) {
        let groups = self.pieces[first..]
            .iter()
            .map(|p| u64::from(p.groups))
            .sum();
        self.units.push(Unit {
            pieces: first as u32..self.pieces.len() as u32,
            queries,
            groups,
        });
    }

    /// Every tree depth first, in row tiles of at most `max_queries`.
    pub(super) fn depth_first(&mut self, view: &TreeView, max_queries: u32) {
        self.clear();
        let mut at = 0;
        while at < view.runs.len() {
            let top = &view.runs[at];
            if !counts(top) {
                at += 1;
                continue;
            }
            let below = &view.runs[at..];
            let len = below
                .iter()
                .position(|run| run.queries.start >= top.queries.end)
                .unwrap_or(below.len());
            if top.queries.end - top.queries.start <= max_queries {
                let first = self.pieces.len();
                for (i, run) in below[..len].iter().enumerate().filter(|(_, r)| counts(r)) {
                    self.pieces
                        .push(Piece::whole(at + i, run, run.queries.clone()));
                }
                self.close_unit(first, top.queries.clone());
            } else {
                self.tile(&view.runs, at..at + len, max_queries);
            }
            at += len;
        }
    }

    /// The tree `runs[range]`, one unit a row tile.
    fn tile(&mut self, runs: &[Run], range: Range<usize>, max_queries: u32) {
        let tree = &runs[range.clone()];
        tile_edges(tree, max_queries, &mut self.edges);
        let tiles = self.edges.len() - 1;
        self.places.clear();
        self.places.resize(tiles + 1, 0);
        for_each_part(tree, &self.edges, |_, tile, _| self.places[tile + 1] += 1);
        let first = self.pieces.len();
        for tile in 0..tiles {
            self.places[tile + 1] += self.places[tile];
        }
        let count = self.places[tiles] as usize;
        let blank = Piece {
            run: 0,
            queries: 0..0,
            pages: 0..0,
            groups: 0,
        };
        self.pieces.resize(first + count, blank);
        let (pieces, places) = (&mut self.pieces[first..], &mut self.places);
        for_each_part(tree, &self.edges, |i, tile, queries| {
            let place = &mut places[tile];
            pieces[*place as usize] = Piece::whole(range.start + i, &tree[i], queries);
            *place += 1;
        });
        let mut begin = first as u32;
        for tile in 0..tiles {
            let end = first as u32 + self.places[tile];
            let pieces = begin..end;
            let groups = self.pieces[begin as usize..end as usize]
                .iter()
                .map(|p| u64::from(p.groups))
                .sum();
            self.units.push(Unit {
                pieces,
                queries: self.edges[tile]..self.edges[tile + 1],
                groups,
            });
            begin = end;
        }
    }

    /// Every query's path from the root, one unit a query. Pages of which the query sees no token are
    /// left out.
    pub(super) fn paths(&mut self, view: &TreeView) {
        self.clear();
        self.path.clear();
        let mut next = 0;
        for query in 0..view.queries {
            self.path
                .retain(|&run| view.runs[run as usize].queries.end > query);
            while let Some(run) = view.runs.get(next) {
                if run.queries.start > query {
                    break;
                }
                if run.queries.end > query && counts(run) {
                    self.path.push(next as u32);
                }
                next += 1;
            }
            let first = self.pieces.len();
            for &index in &self.path {
                let run = &view.runs[index as usize];
                let piece = Piece::whole(index as usize, run, query..query + 1);
                match run.mask {
                    None => self.pieces.push(piece),
                    Some(mask) => push_seen_pages(&mut self.pieces, view, run, mask, piece),
                }
            }
            if self.pieces.len() > first {
                self.close_unit(first, query..query + 1);
            }
        }
    }
}

/// Pushes the parts of a masked `piece` of one query of which the query sees a token.
fn push_seen_pages(
    pieces: &mut Vec<Piece>,
    view: &TreeView,
    run: &Run,
    mask: u32,
    mut piece: Piece,
) {
    let width = run.queries.end - run.queries.start;
    let column = mask + (piece.queries.start - run.queries.start);
    let (last, groups) = (piece.pages.end, piece.groups);
    let sees = |page: u32| view.masks[(column + page * width) as usize] != 0;
    let mut page = 0;
    while page < last {
        let begin = page;
        while page < last && sees(page) {
            page += 1;
        }
        if page > begin {
            piece.pages = begin..page;
            piece.groups = groups.min(page * PAGE_GROUPS) - begin * PAGE_GROUPS;
            pieces.push(piece.clone());
        }
        page += 1;
    }
}

/// Cuts a tree's queries into the fewest tiles of at most `max`, at a child's edge where one is near
/// enough, else evenly.
fn tile_edges(tree: &[Run], max: u32, edges: &mut Vec<u32>) {
    let queries = tree[0].queries.clone();
    edges.clear();
    edges.push(queries.start);
    let mut begin = queries.start;
    let mut runs = tree.iter();
    while queries.end - begin > max {
        let rest = queries.end - begin;
        let tiles = rest.div_ceil(max);
        // Further left than this, the other tiles could not hold the rest.
        let least = rest - (tiles - 1) * max;
        let even = begin + rest.div_ceil(tiles);
        let mut best = even;
        let mut nearest = u32::MAX;
        for run in runs.as_slice() {
            if run.queries.start > begin + max {
                break;
            }
            if run.queries.start > begin {
                let distance = run.queries.start.abs_diff(even);
                let near = distance <= (max / 4).max(1);
                if run.queries.start >= begin + least && near && distance < nearest {
                    (best, nearest) = (run.queries.start, distance);
                }
            }
        }
        while runs
            .as_slice()
            .first()
            .is_some_and(|run| run.queries.start < best)
        {
            runs.next();
        }
        edges.push(best);
        begin = best;
    }
    edges.push(queries.end);
}

/// Calls `part(run, tile, queries)` for every run of `tree` and every tile that some of its queries
/// are in.
fn for_each_part(tree: &[Run], edges: &[u32], mut part: impl FnMut(usize, usize, Range<u32>)) {
    let mut tile = 0;
    for (i, run) in tree.iter().enumerate().filter(|(_, run)| counts(run)) {
        while edges[tile + 1] <= run.queries.start {
            tile += 1;
        }
        let mut at = tile;
        while at + 1 < edges.len() && edges[at] < run.queries.end {
            let queries = run.queries.start.max(edges[at])..run.queries.end.min(edges[at + 1]);
            part(i, at, queries);
            at += 1;
        }
    }
}

/// Checks that `view` is what [`TreeView`] promises, so that planning it cannot go wrong.
pub(super) fn check(view: &TreeView, ancestors: &mut Vec<(u32, u32)>) -> Result<(), PlanError> {
    if !(1..=MAX_QUERIES).contains(&view.queries) {
        return Err(PlanError::Queries {
            queries: view.queries,
            max: MAX_QUERIES,
        });
    }
    for (of, len) in [
        ("runs", view.runs.len()),
        ("pages", view.pages.len()),
        ("masks", view.masks.len()),
    ] {
        let max = u64::from(u32::MAX >> 2);
        if len as u64 > max {
            return Err(PlanError::TooLarge {
                words: len as u64,
                of,
                max,
            });
        }
    }
    // Path to the run at hand: (run, first query that its next child may have).
    ancestors.clear();
    let mut next_root = 0;
    for (index, run) in view.runs.iter().enumerate() {
        let index = index as u32;
        let bad = |what| PlanError::BadRun { run: index, what };
        while ancestors
            .last()
            .is_some_and(|&(top, _)| Some(top) != run.parent)
        {
            ancestors.pop();
        }
        let (next, end) = match (ancestors.last_mut(), run.parent) {
            (Some((top, next)), _) => (next, view.runs[*top as usize].queries.end),
            (None, None) => (&mut next_root, view.queries),
            (None, Some(_)) => return Err(bad("its parent is not on the path to it")),
        };
        if run.queries.start < *next || run.queries.end < run.queries.start || run.queries.end > end
        {
            return Err(bad(
                "its queries are not within its parent's and after its siblings'",
            ));
        }
        *next = run.queries.end;
        ancestors.push((index, run.queries.start));
        check_arrays(view, run).map_err(bad)?;
    }
    Ok(())
}

fn check_arrays(view: &TreeView, run: &Run) -> Result<(), &'static str> {
    if run.pages.end < run.pages.start || run.pages.end as usize > view.pages.len() {
        return Err("its pages are not in the view's pages");
    }
    let pages = run.pages.end - run.pages.start;
    if pages != run.tokens.div_ceil(PAGE_TOKENS) {
        return Err("it has not as many pages as its tokens fill");
    }
    let Some(mask) = run.mask else {
        return Ok(());
    };
    let width = run.queries.end - run.queries.start;
    let end = u64::from(mask) + u64::from(pages) * u64::from(width);
    if end > view.masks.len() as u64 {
        return Err("its masks are not in the view's masks");
    }
    let tail = run.tokens % PAGE_TOKENS;
    if tail > 0 {
        let last = &view.masks[end as usize - width as usize..end as usize];
        if last.iter().any(|&bits| bits >> tail != 0) {
            return Err("a mask shows tokens that do not exist");
        }
    }
    Ok(())
}
