//! Cutting a tree's queries into row tiles.
//!
//! A tree with more queries than an item may hold has to be cut. Others may be: narrower tiles read the
//! pages of wide nodes several times, at nearly the same time and so mostly from the cache, but leave
//! fewer partial results, since each tile's pages are cut into fewer pieces.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;

use super::cost::{Costs, Reading};
use super::sequence::counts;
use crate::format::KvFormat;
use crate::tree::Run;

/// A wider tile is kept unless a narrower one is cheaper by this.
const WORTH: f64 = 0.98;

/// Token groups of runs of as many queries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    queries: u32,
    native: f64,
    /// Those of formats, taken to be the one that was met last.
    coded: f64,
    reading: Reading,
}

impl Width {
    pub(super) fn of(queries: u32) -> Self {
        Self { queries, native: 0.0, coded: 0.0, reading: Reading::NATIVE }
    }

    pub(super) fn add(&mut self, groups: f64, reading: Reading) {
        if reading == Reading::NATIVE {
            self.native += groups;
        } else {
            self.coded += groups;
            self.reading = reading;
        }
    }

    /// What they cost in an item of `queries` queries.
    fn cost(&self, queries: u32, shared: bool, costs: &Costs) -> f64 {
        let rate = |reading| costs.rates_in(queries, reading).of(shared);
        self.native * rate(Reading::NATIVE) + self.coded * rate(self.reading)
    }
}

/// Queries a tile of a tree should have: `widest`, or fewer where that makes its shares cheaper, when a share is to
/// cost about `share_ns`. The tree has `queries` queries and runs of `widths`.
pub(super) fn tile_queries(
    widths: &[Width],
    queries: u32,
    widest: u32,
    costs: &Costs,
    share_ns: f64,
) -> u32 {
    let mut best = widest;
    if !costs.is_wide(best) {
        return best;
    }
    let work = work_ns(widths, best, costs);
    let shares = (work / share_ns).max(1.0);
    if shares < 2.0 && best == queries {
        return best;
    }
    let cost =
        |work: f64, tile: u32| work / shares + costs.item_ns + f64::from(tile) * costs.slot_ns;
    let mut best_cost = cost(work, best);
    let mut tile = best.div_ceil(2);
    while costs.is_wide(2 * tile - 1) {
        let tile_cost = cost(work_ns(widths, tile, costs), tile);
        if tile_cost < WORTH * best_cost {
            (best, best_cost) = (tile, tile_cost);
        }
        if tile == 1 {
            break;
        }
        tile = tile.div_ceil(2);
    }
    best
}

/// Cost of all token groups of runs, by their number of queries, in tiles of `tile` queries.
pub(super) fn work_ns(widths: &[Width], tile: u32, costs: &Costs) -> f64 {
    let runs = widths.iter().map(|width| {
        if width.queries <= tile {
            width.cost(width.queries, false, costs)
        } else {
            f64::from(width.queries.div_ceil(tile)) * width.cost(tile, true, costs)
        }
    });
    runs.sum()
}

/// Cuts a tree's queries into tiles of about `tile` and at most `max`, at a child's edge where one is
/// near enough; writes the first query of each, and the end.
pub(super) fn tile_edges(tree: &[Run], tile: u32, max: u32, edges: &mut Vec<u32>) {
    let queries = tree[0].queries.clone();
    let near = tile / 4;
    let mut tiles = (queries.end - queries.start).div_ceil(tile);
    edges.clear();
    edges.push(queries.start);
    let mut begin = queries.start;
    let mut next = 0;
    while tiles > 1 {
        let rest = queries.end - begin;
        tiles -= 1;
        // Further left than this, the other tiles could not hold the rest.
        let least = begin + rest.saturating_sub(tiles * max).max(1);
        let most = begin + max.min(rest - tiles);
        let even = begin + rest.div_ceil(tiles + 1);
        let starts = tree[next..].iter().map(|run| run.queries.start);
        let edge = starts
            .take_while(|&start| start <= most)
            .filter(|&start| start >= least && start.abs_diff(even) <= near)
            .min_by_key(|&start| start.abs_diff(even))
            .unwrap_or(even);
        next += tree[next..].partition_point(|run| run.queries.start < edge);
        edges.push(edge);
        begin = edge;
    }
    edges.push(queries.end);
}

/// What a row tile sees of some runs that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Runs, counted within the tree. Of several the queries see all, and all but the first are a page.
    pub(super) runs: Range<usize>,
    pub(super) tile: usize,
    pub(super) queries: Range<u32>,
}

/// Calls `part` for every run of `tree` and every tile that some of its queries are in; once for the runs of a
/// [`chain`] that the tile sees whole. So a prompt has a few parts a tile, and not one for each page before it.
pub(super) fn for_each_part(tree: &[Run], edges: &[u32], mut part: impl FnMut(Part)) {
    let (mut begin, mut first_tile) = (0, 0);
    while begin < tree.len() {
        let end = begin + chain(&tree[begin..]);
        let head = &tree[begin];
        if !counts(head) {
            begin = end;
            continue;
        }
        while edges[first_tile + 1] <= head.queries.start {
            first_tile += 1;
        }
        let mut tile = first_tile;
        while tile + 1 < edges.len() && edges[tile] < head.queries.end {
            let of = |run: &Run| {
                run.queries.start.max(edges[tile])..run.queries.end.min(edges[tile + 1])
            };
            let queries = of(head);
            let whole = tree[begin..end]
                .partition_point(|run| of(run) == queries && run.causal_tokens(&queries).is_none());
            let mut run = begin;
            while run < end && !of(&tree[run]).is_empty() {
                let next = if run == begin { begin + whole.max(1) } else { run + 1 };
                part(Part { runs: run..next, tile, queries: of(&tree[run]) });
                run = next;
            }
            tile += 1;
        }
        begin = end;
    }
}

/// How many of `runs` are one run of pages to whoever sees them whole: each is the only child of the one before, and
/// a page, as where a chunk of new tokens lies.
fn chain(runs: &[Run]) -> usize {
    let goes_on = |pair: &&[Run]| {
        let [run, next] = pair else { return false };
        let plain = |run: &Run| run.mask.is_none() && run.length_slot.is_none();
        let pages = |run: &Run| run.pages.end - run.pages.start;
        let nested = |next: &Run, run: &Run| {
            run.queries.start <= next.queries.start && next.queries.end <= run.queries.end
        };
        counts(run)
            && counts(next)
            && nested(next, run)
            && plain(run)
            && plain(next)
            && run.format == next.format
            // Where the rows of a compacted node end differs by head.
            && run.format != KvFormat::Compacted
            && next.pages.start == run.pages.end
            && run.tokens == pages(run) * PAGE_TOKENS
            && pages(next) == 1
    };
    1 + runs.windows(2).take_while(goes_on).count()
}
