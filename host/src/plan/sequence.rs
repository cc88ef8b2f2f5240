//! The order in which KV is met: a view's runs as pieces, grouped into units.
//!
//! A *unit* is a set of pieces that holds everything some queries see: a tree, or for a tree with more
//! queries than an item may hold, one row tile of it; for [`Grouping::PerQuery`](super::Grouping) one
//! query's path. Units share no query. Row tiles follow one another, each in depth-first order
//! (tile-major), so that a tile's pieces can merge into few items. Shares that read the same pages for
//! different tiles do so at about the same time if every tile begins with a share; [`Sequence::order_in_lanes`]
//! puts the tiles in an order in which that takes few shares more.

use std::cmp::Reverse;
use std::ops::Range;

use super::cost::{Costs, Groups, PAGE_GROUPS, Rates, Reading};
use super::tiles::{Part, Width, for_each_part, tile_edges, tile_queries, work_ns};
use crate::format::KvFormat;
use crate::tree::{Run, TreeView};
use kernels_gpu::abi::PAGE_TOKENS;

/// Some pages of a run, for some of its queries.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) run: u32,
    pub(super) queries: Range<u32>,
    /// Pages, counted within the run; those of runs after it come next.
    pub(super) pages: Range<u32>,
    /// Pages of the run itself.
    pub(super) own_pages: u32,
    /// The last of all pages of the piece's runs, and by how many tokens it is not full.
    pub(super) last_page: u32,
    pub(super) missing: u32,
    /// Token groups in those pages; all but the run's last page are full.
    pub(super) groups: u32,
    /// Other row tiles have the same pages.
    pub(super) shared: bool,
    pub(super) format: KvFormat,
    /// What its pages take.
    pub(super) reading: Reading,
    /// What token groups cost in an item of its own, and the most queries for which they do.
    pub(super) rates: Rates,
    pub(super) rated_queries: u32,
    /// Cost of a token group in an item of its own.
    pub(super) rate: f64,
}

impl Piece {
    #[inline]
    fn whole(index: usize, run: &Run, queries: Range<u32>, shared: bool, costs: &Costs) -> Self {
        let reading = costs.reading(run.format);
        let rates = costs.rates_in(queries.end - queries.start, reading);
        Self {
            run: index as u32,
            rates,
            rated_queries: costs.tile_queries(queries.end - queries.start),
            rate: rates.of(shared),
            format: run.format,
            reading,
            queries,
            pages: 0..run.pages.end - run.pages.start,
            own_pages: run.pages.end - run.pages.start,
            last_page: run.pages.end - run.pages.start,
            missing: 0,
            groups: costs.groups(run.tokens),
            shared,
        }
    }

    /// Adds the runs after the first of `runs`, which is the piece's; each is a page.
    fn join(&mut self, runs: &[Run], costs: &Costs) {
        let [first, .., last] = runs else { return };
        self.pages.end = last.pages.end - first.pages.start;
        self.last_page = self.pages.end;
        self.missing = PAGE_TOKENS - last.tokens;
        self.groups = (self.pages.end - 1) * PAGE_GROUPS + costs.groups(last.tokens);
    }
}

/// Pieces that hold everything their queries see.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) pieces: Range<u32>,
    pub(super) queries: Range<u32>,
    /// Its token groups, those of formats as the native ones that cost as much.
    pub(super) groups: Groups,
    /// Which of its tree's row tiles it is, and how many there are.
    pub(super) tile: u32,
    pub(super) tiles: u32,
    /// Its place in depth-first order.
    place: u32,
    /// It begins a lane, and so a share.
    pub(super) begins_lane: bool,
    /// The unit before it in depth-first order comes before it here as well.
    pub(super) follows: bool,
}

/// A tree and how its queries are cut into row tiles.
#[derive(Debug)]
struct Tree {
    runs: Range<u32>,
    /// Its part of [`Sequence::widths`].
    widths: Range<u32>,
    queries: Range<u32>,
    /// Queries of a tile, about.
    tile: u32,
}

#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) pieces: Vec<Piece>,
    pub(super) units: Vec<Unit>,
    trees: Vec<Tree>,
    /// By tree, the token groups of its runs of as many queries: all that the width of its tiles depends on.
    widths: Vec<Width>,
    /// Row tiles of the tree at hand: first query of each, and an end.
    edges: Vec<u32>,
    /// What each row tile sees of the tree at hand.
    parts: Vec<Part>,
    /// Pieces of each tile, then where its next piece goes; or by number of queries, where its width is.
    places: Vec<u32>,
    /// Runs on the path of the query at hand.
    path: Vec<u32>,
}

/// Whether a run asks for anything: someone sees it, and it holds tokens or may come to.
pub(super) fn counts(run: &Run) -> bool {
    !run.queries.is_empty() && (run.tokens > 0 || run.length_slot.is_some())
}

impl Sequence {
    fn clear(&mut self) {
        self.pieces.clear();
        self.units.clear();
    }

    fn push_unit(
        &mut self,
        pieces: Range<usize>,
        queries: Range<u32>,
        (tile, tiles): (u32, u32),
        costs: &Costs,
    ) {
        let mut groups = Groups::default();
        let count = queries.end - queries.start;
        for piece in &self.pieces[pieces.clone()] {
            let native = costs.as_native(count, piece.reading, piece.shared);
            groups.add(f64::from(piece.groups) * native, piece.shared);
        }
        self.units.push(Unit {
            pieces: pieces.start as u32..pieces.end as u32,
            queries,
            groups,
            tile,
            tiles,
            place: self.units.len() as u32,
            begins_lane: false,
            follows: true,
        });
    }

    /// Orders the units of trees with as many row tiles by tile and not by tree: a *lane* has one tile of each,
    /// and begins with a share. Lanes are about as long as each other and read the same pages at the same time.
    /// Trees of one tile come last and fill what the lanes leave.
    pub(super) fn order_in_lanes(&mut self) {
        let lane = |unit: &Unit| (Reverse(unit.tiles), unit.tile);
        self.units.sort_by_key(lane);
        let mut before: Option<(Reverse<u32>, u32, u32)> = None;
        for unit in &mut self.units {
            let (tiles, tile) = lane(unit);
            unit.begins_lane =
                unit.tiles > 1 && before.is_none_or(|(t, i, _)| (t, i) != (tiles, tile));
            unit.follows = before.is_none_or(|(_, _, place)| place + 1 == unit.place);
            before = Some((tiles, tile, unit.place));
        }
    }

    /// Every tree of the view that was begun, depth first, in row tiles of at most `max_queries`; with a number of shares, in
    /// narrower ones where those are then cheaper.
    pub(super) fn depth_first(
        &mut self,
        view: &TreeView,
        max_queries: u32,
        costs: &Costs,
        shares: Option<u32>,
    ) {
        self.choose_tiles(max_queries, costs, shares);
        self.clear();
        for at in 0..self.trees.len() {
            let Tree { ref runs, ref queries, tile, .. } = self.trees[at];
            let (runs, queries) = (runs.start as usize..runs.end as usize, queries.clone());
            let tree = &view.runs[runs.clone()];
            if tile == queries.end - queries.start {
                let first = self.pieces.len();
                for (i, run) in tree.iter().enumerate().filter(|(_, run)| counts(run)) {
                    let queries = run.queries.clone();
                    self.pieces.push(Piece::whole(runs.start + i, run, queries, false, costs));
                }
                self.push_unit(first..self.pieces.len(), queries, (0, 1), costs);
            } else {
                let most = costs.tile_queries(tile).min(max_queries);
                tile_edges(tree, tile, most, &mut self.edges);
                self.push_tiles(&view.runs, runs, costs);
            }
        }
    }

    /// Finds the trees of a view, before the first time that it is gone through depth first.
    pub(super) fn begin(&mut self, view: &TreeView, costs: &Costs) {
        self.trees.clear();
        self.widths.clear();
        self.places.clear();
        self.places.resize(view.queries as usize + 1, u32::MAX);
        let mut at = 0;
        while at < view.runs.len() {
            let top = &view.runs[at];
            if !counts(top) {
                at += 1;
                continue;
            }
            let below = &view.runs[at..];
            let len = below.partition_point(|run| run.queries.start < top.queries.end);
            let first = self.widths.len();
            for run in below[..len].iter().filter(|run| counts(run)) {
                let queries = run.queries.end - run.queries.start;
                let place = &mut self.places[queries as usize];
                if *place == u32::MAX || (*place as usize) < first {
                    *place = self.widths.len() as u32;
                    self.widths.push(Width::of(queries));
                }
                let reading = costs.reading(run.format);
                self.widths[*place as usize].add(f64::from(costs.groups(run.tokens)), reading);
            }
            self.trees.push(Tree {
                runs: at as u32..(at + len) as u32,
                widths: first as u32..self.widths.len() as u32,
                queries: top.queries.clone(),
                tile: 0,
            });
            at += len;
        }
    }

    /// Chooses the width of every tree's row tiles, as [`Sequence::depth_first`] does; false if each is as it was.
    pub(super) fn choose_tiles(
        &mut self,
        max_queries: u32,
        costs: &Costs,
        shares: Option<u32>,
    ) -> bool {
        let share_ns = shares.map(|shares| {
            let work = work_ns(&self.widths, max_queries, costs);
            work / f64::from(shares) + costs.item_ns
        });
        let mut changed = false;
        for tree in &mut self.trees {
            let queries = tree.queries.end - tree.queries.start;
            let widest = queries.div_ceil(queries.div_ceil(max_queries));
            let widths = &self.widths[tree.widths.start as usize..tree.widths.end as usize];
            let tile = share_ns
                .map_or(widest, |share_ns| tile_queries(widths, queries, widest, costs, share_ns));
            changed |= tile != tree.tile;
            tree.tile = tile;
        }
        changed
    }

    /// The tree `runs[range]`, one unit for each of the row tiles in `edges`.
    fn push_tiles(&mut self, runs: &[Run], range: Range<usize>, costs: &Costs) {
        let tree = &runs[range.clone()];
        let tiles = self.edges.len() - 1;
        self.places.clear();
        self.places.resize(tiles + 1, 0);
        self.parts.clear();
        for_each_part(tree, &self.edges, |part| {
            self.places[part.tile + 1] += 1;
            self.parts.push(part);
        });
        for tile in 0..tiles {
            self.places[tile + 1] += self.places[tile];
        }
        let first = self.pieces.len();
        let blank = Piece::whole(range.start, &tree[0], 0..0, false, costs);
        self.pieces.resize(first + self.places[tiles] as usize, blank);
        let pieces = &mut self.pieces[first..];
        for Part { runs, tile, queries } in self.parts.drain(..) {
            let run = &tree[runs.start];
            let shared = queries != run.queries;
            let place = &mut self.places[tile];
            let piece = &mut pieces[*place as usize];
            *piece = Piece::whole(range.start + runs.start, run, queries, shared, costs);
            piece.join(&tree[runs], costs);
            *place += 1;
        }
        let mut begin = first;
        for tile in 0..tiles {
            let end = first + self.places[tile] as usize;
            let queries = self.edges[tile]..self.edges[tile + 1];
            self.push_unit(begin..end, queries, (tile as u32, tiles as u32), costs);
            begin = end;
        }
    }

    /// Every query's path from the root, one unit a query. Pages of which the query sees no token are
    /// left out.
    pub(super) fn paths(&mut self, view: &TreeView, costs: &Costs) {
        self.clear();
        self.path.clear();
        let mut next = 0;
        for query in 0..view.queries {
            self.path.retain(|&run| view.runs[run as usize].queries.end > query);
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
                let shared = run.queries.end - run.queries.start > 1;
                let piece = Piece::whole(index as usize, run, query..query + 1, shared, costs);
                match run.mask {
                    None => self.pieces.push(piece),
                    Some(mask) => push_seen_pages(&mut self.pieces, view, run, mask, piece),
                }
            }
            if self.pieces.len() > first {
                self.push_unit(first..self.pieces.len(), query..query + 1, (0, 1), costs);
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
