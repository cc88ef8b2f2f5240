//! Flatten's candidates, and which of them is best.
//!
//! | candidate | what it is good for |
//! |---|---|
//! | streamed | even shares, whatever the tree; tiles as wide as is cheapest tree by tree, or one width for all |
//! | lanes | row tiles that read more pages than the cache keeps: each begins with a share |
//! | whole tiles | more row tiles than shares: each is one item, and leaves no partial result |
//! | nodes | Node's plan: narrow items beside wide ones |
//! | paths | PerQuery's plan: nothing is shared, or too little |
//!
//! A candidate that could not be best is not made: what its pages cost at least says so, or one filling of its
//! cut. Streams of tiles half as wide are tried as well, and streams and whole tiles in fewer shares where that may
//! make other tiles, or bring them into step, so that one share more hardly ever makes a plan worse.

use super::config::{Candidates, PlanConfig};
use super::cost::Costs;
use super::cut::{Cut, PRECISION, Search, cut, mean_ns};
use super::draft::Draft;
use super::encode::MAX_PLACE;
use super::floors::{Floors, units_floor};
use super::merge::Merge;
use super::node::{Dealer, deal, deal_units};
use super::score::{Score, Scorer};
use super::sequence::Sequence;
use super::{Grouping, PlanError};
use crate::tree::TreeView;

/// Pieces and shares of all streams together before no more are tried.
const EFFORT: usize = 1_000;
/// Fillings of a cut whose target is guessed; it is made exact only if it keeps in step.
const ROUGH: u32 = 2;
/// What fewer shares may leave of the work, since they leave fewer partial results.
const SPARED: f64 = 0.9;
/// Whole row tiles are dealt before anything is cut if they may take at most this many times what even shares do.
const EVEN: f64 = 1.04;
/// PerQuery's plan is taken if it is no dearer than another by this.
const DRAW: f64 = 1.01;

/// Makes drafts; it owns what that needs.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    sequence: Sequence,
    /// The candidate at hand.
    trial: Draft,
    /// The best so far.
    pub(super) best: Draft,
    pub(super) merge: Merge,
    scorer: Scorer,
    dealer: Dealer,
    /// Pieces and shares of the streams so far.
    effort: usize,
    /// What the costliest share of the first stream costs.
    stream_ns: Option<f64>,
    /// A candidate read pages again when the cache no longer had them.
    out_of_step: bool,
}

/// What a planner is asked.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) view: &'a TreeView,
    pub(super) config: &'a PlanConfig,
    pub(super) costs: &'a Costs,
}

impl Chooser {
    /// Leaves the draft that `request` asks for in `best`, and its merge tables.
    pub(super) fn choose(&mut self, request: Request<'_>) -> Result<Score, PlanError> {
        let (config, max_queries) = (request.config, request.config.max_queries());
        let mut best = None;
        self.sequence.begin(request.view, request.costs);
        match config.grouping {
            Grouping::Flatten => self.flatten(request, &mut best)?,
            Grouping::PerQuery => self.paths(request, config.shares, &mut best)?,
            Grouping::Node => self.nodes(request, None, config.shares, &mut best)?,
            Grouping::NodeChunk => {
                let chunk = Some(config.chunk_pages);
                self.nodes(request, chunk, config.shares, &mut best)?;
            }
        }
        debug_assert!(
            self.best
                .items
                .iter()
                .all(|item| { item.queries.end - item.queries.start <= max_queries.max(1) })
        );
        let mut best = best.expect("a candidate was made");
        self.best.join_pages(request.view);
        let split = self.best.split_programs(MAX_PLACE);
        self.merge.fill(&mut self.best, request.view)?;
        if split {
            best = self.rescore(request.view, request.costs);
        }
        Ok(best)
    }

    /// What the draft in `best`, of `view`, costs by `costs`.
    pub(super) fn rescore(&mut self, view: &TreeView, costs: &Costs) -> Score {
        self.scorer.score(view, costs, &mut self.best, &self.merge)
    }

    fn flatten(&mut self, request: Request<'_>, best: &mut Best) -> Result<(), PlanError> {
        let candidates = request.config.candidates;
        if candidates != Candidates::All {
            return self.only(candidates, request, best);
        }
        // Nothing is shared: an item of several queries would only hide pages from their rows.
        if request.view.runs.iter().all(|run| run.queries.len() <= 1) {
            return self.paths(request, request.config.shares, best);
        }
        let floors = Floors::of(request);
        let (most, widest) = (request.config.shares, request.config.max_queries());
        self.effort = 0;
        self.out_of_step = false;
        self.stream_ns = None;
        self.streamed(request, &floors, most, widest, best)?;
        self.narrower(request, &floors, best)?;
        self.fewer(request, &floors, best)?;
        if !beaten(best, floors.nodes(most)) {
            self.nodes(request, None, most, best)?;
        }
        // Items of one query hide no page from any row, which the model does not count: they win a draw.
        if !beaten(best, floors.paths(most) / DRAW) {
            self.paths(request, most, best)?;
        }
        Ok(())
    }

    /// Streams of row tiles half as wide: in all shares, one less, and as many as those of the widest tree come out
    /// even in.
    fn narrower(
        &mut self,
        request: Request<'_>,
        floors: &Floors<'_>,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let (most, widest) = (request.config.shares, request.config.max_queries());
        let runs = request.view.runs.iter();
        let roots = runs.filter(|run| run.parent.is_none());
        let queries = roots.map(|run| run.queries.end - run.queries.start).max();
        let tiles = |width: u32| queries.unwrap_or(0).div_ceil(width).max(1);
        let half = widest.div_ceil(2);
        if tiles(widest) >= most || half == widest || self.effort > EFFORT {
            return Ok(());
        }
        let even = most / tiles(half) * tiles(half);
        for (at, shares) in [most, most - 1, even].into_iter().enumerate() {
            let tried = match at {
                0 => false,
                // One share less may bring into step what is not.
                1 => !self.out_of_step,
                _ => shares + 1 >= most,
            };
            if !tried && shares > 0 && !beaten(best, floors.any(shares)) {
                self.streamed(request, floors, shares, half, best)?;
            }
        }
        Ok(())
    }

    /// Streams in fewer shares. The same tiles would be cut no better, but may keep in step.
    fn fewer(
        &mut self,
        request: Request<'_>,
        floors: &Floors<'_>,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let Request { config, costs, .. } = request;
        let widest = config.max_queries();
        self.sequence.choose_tiles(widest, costs, Some(config.shares));
        let work: f64 = self.best.share_ns.iter().sum();
        for shares in (1..config.shares).rev() {
            let even = costs.launch_ns + SPARED * work / f64::from(shares);
            if self.effort > EFFORT || beaten(best, even.max(floors.any(shares))) {
                break;
            }
            let others = self.sequence.choose_tiles(widest, costs, Some(shares));
            if others || self.out_of_step {
                self.streamed(request, floors, shares, widest, best)?;
            }
        }
        Ok(())
    }

    /// One candidate, whatever it costs.
    fn only(
        &mut self,
        candidate: Candidates,
        request: Request<'_>,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let Request { view, config, costs } = request;
        let (shares, max_queries) = (config.shares, config.max_queries());
        let chosen = (candidate == Candidates::Even).then_some(shares);
        self.sequence.depth_first(view, max_queries, costs, chosen);
        match candidate {
            Candidates::Whole => return self.units(request, shares, best),
            Candidates::Lanes => self.sequence.order_in_lanes(),
            _ => {}
        }
        self.cut(request, shares, max_queries, Search::FULL);
        self.judge(request, best, 1.0).map(drop)
    }

    /// Depth first in consecutive shares, in lanes if its tiles would not keep in step, and as whole tiles.
    fn streamed(
        &mut self,
        request: Request<'_>,
        floors: &Floors<'_>,
        shares: u32,
        widest: u32,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let Request { view, config, costs } = request;
        self.sequence.depth_first(view, widest, costs, Some(shares));
        if widest == config.max_queries() {
            self.effort += self.sequence.pieces.len() + shares as usize;
        }
        // Whole tiles first if they may come out even: what cannot beat them is then soon given up.
        let whole = units_floor(&self.sequence, costs, shares);
        let even = costs.launch_ns + mean_ns(&self.sequence, costs, shares);
        let whole_first = whole < EVEN * even;
        if whole_first && !beaten(best, whole) {
            self.units(request, shares, best)?;
        }
        let first = (shares, widest) == (config.shares, config.max_queries());
        let guess = self
            .stream_ns
            .filter(|_| widest == config.max_queries())
            .map(|ns| ns * f64::from(config.shares) / f64::from(shares));
        let stream_ns = self.cut_and_judge(request, shares, guess, best)?;
        if first {
            self.stream_ns = stream_ns;
        }
        if !whole_first && !beaten(best, whole) {
            self.units(request, shares, best)?;
        }
        if shares + 1 >= config.shares && widest == config.max_queries() {
            self.lanes(request, floors, shares, best)?;
        }
        Ok(())
    }

    /// The sequence in lanes, if its tiles do not keep in step otherwise.
    fn lanes(
        &mut self,
        request: Request<'_>,
        floors: &Floors<'_>,
        shares: u32,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let tiled = self.sequence.units.iter().any(|unit| unit.tiles > 1);
        if tiled && self.out_of_step && !beaten(best, floors.any(shares)) {
            self.sequence.order_in_lanes();
            self.cut_and_judge(request, shares, None, best)?;
        }
        Ok(())
    }

    /// Every row tile of the sequence whole, dealt.
    fn units(
        &mut self,
        request: Request<'_>,
        shares: u32,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let (sequence, dealer) = (&self.sequence, &mut self.dealer);
        self.trial.clear(request.config.shares);
        deal_units(sequence, request.costs, shares, dealer, &mut self.trial);
        let score = self.judge(request, best, 1.0)?;
        self.out_of_step |= score.out_of_step;
        Ok(())
    }

    /// Cuts the sequence and judges what that makes, if it could be better than the best; what its costliest share
    /// costs. A cut from a guess is made exact only if that
    /// decides what the plan takes.
    fn cut_and_judge(
        &mut self,
        request: Request<'_>,
        shares: u32,
        guess: Option<f64>,
        best: &mut Best,
    ) -> Result<Option<f64>, PlanError> {
        let max_queries = request.config.max_queries();
        let mut search = Search {
            worth: best.map_or(f64::INFINITY, |best| best.ns - request.costs.launch_ns),
            guess,
            ..Search::FULL
        };
        if guess.is_some() {
            search.fillings = ROUGH;
        }
        let cut = self.cut(request, shares, max_queries, search);
        if !cut.drafted {
            return Ok(None);
        }
        let score = self.judge(request, best, 1.0)?;
        self.out_of_step |= score.out_of_step;
        if !cut.exact && search.fillings == ROUGH && !score.out_of_step {
            search.worth = search.worth.min(score.ns - request.costs.launch_ns);
            search.fillings = Search::FULL.fillings;
            if self.cut(request, shares, max_queries, search).drafted {
                self.judge(request, best, 1.0)?;
            }
        }
        Ok(Some(cut.max))
    }

    /// Cuts the sequence.
    fn cut(&mut self, request: Request<'_>, shares: u32, max_queries: u32, search: Search) -> Cut {
        let (sequence, trial) = (&self.sequence, &mut self.trial);
        trial.clear(request.config.shares);
        cut(sequence, request.costs, max_queries, shares, search, trial)
    }

    /// Every node, or chunk of one, by itself, dealt.
    fn nodes(
        &mut self,
        request: Request<'_>,
        chunk: Option<u32>,
        shares: u32,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        let (config, costs) = (request.config, request.costs);
        self.sequence.depth_first(request.view, config.max_queries(), costs, None);
        self.trial.clear(config.shares);
        deal(&self.sequence, costs, chunk, shares, &mut self.dealer, &mut self.trial);
        self.judge(request, best, 1.0).map(drop)
    }

    /// Every query's path, in even shares or whole.
    fn paths(
        &mut self,
        request: Request<'_>,
        shares: u32,
        best: &mut Best,
    ) -> Result<(), PlanError> {
        self.sequence.paths(request.view, request.costs);
        self.cut(request, shares, 1, Search::FULL);
        self.judge(request, best, DRAW)?;
        // Whole paths leave nothing to merge.
        if !beaten(best, units_floor(&self.sequence, request.costs, shares)) {
            self.units(request, shares, best)?;
        }
        Ok(())
    }

    /// Scores the candidate at hand and keeps it if it is the best so far, or not dearer by `favour`.
    fn judge(
        &mut self,
        request: Request<'_>,
        best: &mut Best,
        favour: f64,
    ) -> Result<Score, PlanError> {
        let view = request.view;
        self.merge.fill(&mut self.trial, view)?;
        let score = self.scorer.score(view, request.costs, &mut self.trial, &self.merge);
        if best.is_none_or(|best| score.ns < best.ns * favour) {
            *best = Some(score);
            std::mem::swap(&mut self.best, &mut self.trial);
        }
        Ok(score)
    }
}

/// The best candidate's score.
type Best = Option<Score>;

/// Whether no candidate that costs `floor` or more would be better than the best by what a cut is exact to.
fn beaten(best: &Best, floor: f64) -> bool {
    best.is_some_and(|best| best.ns <= floor * (1.0 + PRECISION))
}
