//! Filling shares one after another up to a target cost.

use std::ops::Range;

use super::cost::{Costs, Groups, PAGE_GROUPS, Rates};
use super::draft::Draft;
use super::sequence::{Piece, Sequence, Unit};
use crate::format::KvFormat;

/// A share may exceed its target by this if a piece then need not be cut.
pub(super) const OVERSHOOT: f64 = 0.005;

/// What a filling is told to do with what it decides.
pub(super) trait Sink {
    fn begin_item(&mut self, share: u32, queries: Range<u32>);
    fn push_segment(&mut self, piece: &Piece, pages: Range<u32>);
}

/// Only the costs matter.
pub(super) struct Trial;

impl Sink for Trial {
    fn begin_item(&mut self, _: u32, _: Range<u32>) {}
    fn push_segment(&mut self, _: &Piece, _: Range<u32>) {}
}

impl Sink for Draft {
    fn begin_item(&mut self, share: u32, queries: Range<u32>) {
        Draft::begin_item(self, share, queries);
    }
    fn push_segment(&mut self, piece: &Piece, pages: Range<u32>) {
        Draft::push_segment(self, piece, pages);
    }
}

/// The item being filled.
#[derive(Clone, Copy)]
struct Open {
    begin: u32,
    end: u32,
    groups: Groups,
    rates: Rates,
    /// How its pages are stored: an item has pages of one format.
    format: KvFormat,
    /// Most queries that the rates hold for.
    rated_queries: u32,
    /// Cost of the token groups.
    kv_ns: f64,
    /// It holds everything its queries see, as far as it goes: so it needs no partial slots if it ends
    /// with a unit.
    complete: bool,
    /// The piece added last ended its unit.
    at_unit_end: bool,
}

/// Shares being filled.
pub(super) struct Filling<'a> {
    costs: &'a Costs,
    max_queries: u32,
    shares: u32,
    target: f64,
    /// What a share may cost at most.
    limit: f64,
    share: u32,
    /// Cost of the share's items that are done.
    closed: f64,
    open: Option<Open>,
    done: Filled,
}

/// What a filling came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    /// Cost of the costliest share.
    pub(super) max: f64,
    /// Cost of all shares.
    pub(super) total: f64,
    /// Cost of the last share that there may be, which takes all that the others left; 0 if unused.
    pub(super) last: f64,
}

impl<'a> Filling<'a> {
    /// Shares of about `target`, of items of at most `max_queries` queries.
    pub(super) fn new(costs: &'a Costs, max_queries: u32, shares: u32, target: f64) -> Self {
        Self {
            costs,
            max_queries,
            shares,
            target,
            limit: target * (1.0 + OVERSHOOT),
            share: 0,
            closed: 0.0,
            open: None,
            done: Filled::default(),
        }
    }

    pub(super) fn run(mut self, sequence: &Sequence, sink: &mut impl Sink) -> Filled {
        for unit in &sequence.units {
            if unit.begins_lane && !self.share_is_empty() && self.share + 1 < self.shares {
                self.end_share();
            } else if !unit.follows {
                self.close_item();
            }
            let unit_fits = self.enter(unit);
            let pieces = &sequence.pieces[unit.pieces.start as usize..unit.pieces.end as usize];
            for (i, piece) in pieces.iter().enumerate() {
                let place = Place { first: i == 0, last: i + 1 == pieces.len(), unit_fits };
                self.place(piece, place, sink);
            }
        }
        self.end_share();
        self.done
    }

    /// Whether the whole unit fits into the share at hand. If not, and the open item is complete
    /// without it, the item stays so.
    fn enter(&mut self, unit: &Unit) -> bool {
        let rates = self.costs.rates(unit.queries.end - unit.queries.start);
        let alone = self.costs.item_ns + rates.cost(unit.groups);
        let Some(open) = &self.open else {
            return self.closed + alone <= self.limit;
        };
        let mut cost = self.item_cost(open, !open.at_unit_end) + alone;
        let count = unit.queries.end - open.begin;
        if open.complete && count <= self.max_queries {
            let rates = self.costs.rates(count);
            let merged = rates.cost(open.groups) + rates.cost(unit.groups) + self.costs.item_ns;
            cost = cost.min(merged);
        }
        let fits = self.closed + cost <= self.limit;
        if !fits && open.complete {
            self.close_item();
        }
        fits
    }

    /// Cost of the open item; with `slots`, as if it had to leave partial results behind.
    fn open_cost(&self, slots: bool) -> f64 {
        self.open.as_ref().map_or(0.0, |open| self.item_cost(open, slots))
    }

    fn item_cost(&self, item: &Open, slots: bool) -> f64 {
        let slots = if slots || !item.complete {
            f64::from(item.end - item.begin) * self.costs.slot_ns
        } else {
            0.0
        };
        self.costs.item_ns + item.kv_ns + slots
    }

    fn close_item(&mut self) {
        if let Some(open) = self.open.take() {
            self.closed += self.item_cost(&open, !open.at_unit_end);
        }
    }

    fn end_share(&mut self) {
        self.close_item();
        let cost = std::mem::take(&mut self.closed);
        self.done.max = self.done.max.max(cost);
        self.done.total += cost;
        self.share += 1;
        if self.share == self.shares {
            self.done.last = cost;
        }
    }

    fn share_is_empty(&self) -> bool {
        self.open.is_none() && self.closed == 0.0
    }

    /// The ways in which some of `piece` can be added.
    fn ways(&self, piece: &Piece, begins_unit: bool, whole_unit: bool) -> Ways {
        let own = &piece.queries;
        let alone = Open {
            begin: own.start,
            end: own.end,
            groups: Groups::default(),
            rates: piece.rates,
            format: piece.format,
            rated_queries: piece.rated_queries,
            kv_ns: 0.0,
            complete: begins_unit,
            at_unit_end: false,
        };
        let mut ways = Ways { closed: self.closed, alone, joint: None };
        let Some(open) = &self.open else { return ways };
        ways.closed += self.item_cost(open, !open.at_unit_end);
        let mut joint = *open;
        joint.begin = open.begin.min(own.start);
        joint.end = open.end.max(own.end);
        let count = joint.end - joint.begin;
        if count > self.max_queries || open.format != piece.format {
            return ways;
        }
        if count > open.rated_queries {
            joint.rates = self.costs.rates_in(count, piece.reading);
            joint.rated_queries = self.costs.tile_queries(count);
            joint.kv_ns = joint.rates.cost(joint.groups);
        }
        let grown = f64::from(count - (open.end - open.begin));
        let slots = match (open.complete, whole_unit) {
            (true, _) => 0.0,
            (false, true) => grown,
            (false, false) => grown - f64::from(own.end - own.start),
        };
        let dearer = joint.kv_ns - open.kv_ns + slots * self.costs.slot_ns;
        ways.joint = Some((joint, self.costs.item_ns - dearer));
        ways
    }

    /// What the share costs with `groups` token groups of `piece` added. With `slots`, the item that they are in is
    /// taken to leave partial results.
    #[inline]
    fn with(&self, ways: &Ways, piece: &Piece, groups: f64, slots: bool) -> f64 {
        let (item, joins) = ways.item(piece, groups);
        let closed = if joins { self.closed } else { ways.closed };
        closed + self.item_cost(item, slots) + groups * item.rates.of(piece.shared)
    }

    /// Adds all of `piece` to the open item if that has its queries already, as most have, and the share takes it:
    /// what [`Filling::add`] would do, in a few instructions.
    #[inline]
    fn extend(&mut self, piece: &Piece, place: Place) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let own = &piece.queries;
        if own.start < open.begin || open.end < own.end || open.format != piece.format {
            return false;
        }
        let groups = f64::from(piece.groups);
        let kv_ns = groups * open.rates.of(piece.shared);
        let whole_unit = place.first && place.unit_fits;
        let spared = if open.complete || whole_unit {
            0.0
        } else {
            f64::from(own.end - own.start) * self.costs.slot_ns
        };
        let slots = if open.complete && (place.last || place.unit_fits) {
            0.0
        } else {
            f64::from(open.end - open.begin) * self.costs.slot_ns
        };
        let cost = self.closed + self.costs.item_ns + open.kv_ns + kv_ns + slots;
        let dearer = kv_ns - groups * piece.rate - spared;
        if dearer > self.costs.item_ns || cost > self.limit {
            return false;
        }
        open.kv_ns += kv_ns;
        open.groups.add(groups, piece.shared);
        open.at_unit_end = place.last;
        true
    }

    /// Adds all of `piece`, ending as many shares as that takes.
    fn place(&mut self, piece: &Piece, place: Place, sink: &mut impl Sink) {
        let mut pages = piece.pages.clone();
        if self.extend(piece, place) {
            sink.push_segment(piece, pages);
            return;
        }
        let mut groups = piece.groups;
        loop {
            let begins_unit = place.first && pages.start == piece.pages.start;
            let ways = self.ways(piece, begins_unit, begins_unit && place.unit_fits);
            // Partial slots are counted on unless the unit ends here, or all of it will fit.
            let slots = !(place.last || place.unit_fits);
            let must = self.share + 1 >= self.shares
                || (self.share_is_empty() && pages.end - pages.start <= 1);
            if must || self.with(&ways, piece, f64::from(groups), slots) <= self.limit {
                self.add(&ways, piece, pages, groups, sink);
                if let Some(open) = &mut self.open {
                    open.at_unit_end = place.last;
                }
                return;
            }
            let fit = self.pages_that_fit(&ways, piece, pages.end - pages.start);
            if fit > 0 {
                let taken = fit * PAGE_GROUPS;
                self.add(&ways, piece, pages.start..pages.start + fit, taken, sink);
                pages.start += fit;
                groups -= taken;
            }
            self.end_share();
        }
    }

    /// Adds `groups` token groups of `piece` that are in `pages`.
    fn add(
        &mut self,
        ways: &Ways,
        piece: &Piece,
        pages: Range<u32>,
        groups: u32,
        sink: &mut impl Sink,
    ) {
        let groups = f64::from(groups);
        let (item, joins) = ways.item(piece, groups);
        let mut item = *item;
        item.kv_ns += groups * item.rates.of(piece.shared);
        item.groups.add(groups, piece.shared);
        if !joins {
            self.closed = ways.closed;
            sink.begin_item(self.share, piece.queries.clone());
        }
        sink.push_segment(piece, pages);
        self.open = Some(item);
    }

    /// Pages that the share still takes of a piece with `pages` left, fewer than all of them; at least
    /// one if the share is empty. Too few to be worth their item and slots are none.
    fn pages_that_fit(&self, ways: &Ways, piece: &Piece, pages: u32) -> u32 {
        let (item, _) = ways.item(piece, 0.0);
        let page_ns = item.rates.of(piece.shared) * f64::from(PAGE_GROUPS);
        let cost = self.with(ways, piece, 0.0, true);
        let room = (self.target - cost) / page_ns;
        let fit = (room.max(0.0) as u32).min(pages.saturating_sub(1));
        if self.share_is_empty() {
            return fit.max(1);
        }
        let overhead = cost - self.closed - self.open_cost(true);
        if f64::from(fit) * page_ns < overhead { 0 } else { fit }
    }
}

/// Where a piece stands in its unit.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: bool,
    last: bool,
    unit_fits: bool,
}

/// The ways in which some of a piece can be added to a share.
struct Ways {
    /// What the share costs with its open item ended.
    closed: f64,
    /// An item of its own, empty.
    alone: Open,
    /// The open item with room for the piece's queries, if it may have them; and how much dearer the piece may be
    /// in it than in one of its own.
    joint: Option<(Open, f64)>,
}

impl Ways {
    /// The item that `groups` token groups of `piece` go to, without them: the open one if that is no dearer; and
    /// whether it is that.
    #[inline]
    fn item(&self, piece: &Piece, groups: f64) -> (&Open, bool) {
        match &self.joint {
            Some((joint, most))
                if groups * (joint.rates.of(piece.shared) - piece.rate) <= *most =>
            {
                (joint, true)
            }
            _ => (&self.alone, false),
        }
    }
}
