//! Cutting a sequence of pieces into shares of near-equal cost.
//!
//! This is the linear partition problem: consecutive shares, the costliest as cheap as can be. Filling
//! shares one after another up to a target cost is optimal for a given target; a few fillings find the
//! least target that suffices, each moving it by what the last share had too much or too little.

use std::ops::Range;

use super::cost::{Costs, Groups, PAGE_GROUPS, Rates};
use super::draft::Draft;
use super::sequence::{Piece, Sequence, Unit};

/// Fillings tried at most.
const FILLINGS: u32 = 8;
/// The search ends when the costliest share is this close to what it could be.
pub(super) const PRECISION: f64 = 0.01;
/// A share may exceed its target by this if a piece then need not be cut.
const OVERSHOOT: f64 = 0.005;

/// What a filling is told to do with what it decides.
trait Sink {
    fn begin_item(&mut self, share: u32, queries: Range<u32>);
    fn push_segment(&mut self, piece: &Piece, pages: Range<u32>);
}

/// Only the costs matter.
struct Trial;

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

/// Cuts `sequence` into at most `shares` shares whose items hold at most `max_queries` queries. `draft` is
/// empty and has at least as many. Nothing is drafted if some share would cost `worth` and more: one filling
/// tells.
pub(super) fn cut(
    sequence: &Sequence,
    costs: &Costs,
    max_queries: u32,
    shares: u32,
    worth: f64,
    draft: &mut Draft,
) -> Cut {
    let filling = |target| Filling {
        costs,
        max_queries,
        shares,
        target,
        limit: target * (1.0 + OVERSHOOT),
        share: 0,
        closed: 0.0,
        open: None,
        done: Filled::default(),
    };
    let parts = f64::from(shares);
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut target = if worth.is_finite() {
        worth * (1.0 - PRECISION)
    } else {
        mean_ns(sequence, costs, shares)
    };
    let (mut best, mut best_target) = (f64::INFINITY, target);
    let mut fillings = 1;
    loop {
        let filled = filling(target).run(sequence, &mut Trial);
        if filled.max < best {
            (best, best_target) = (filled.max, target);
        }
        if best >= worth {
            return Cut {
                drafted: false,
                fillings,
            };
        }
        if filled.last > target * (1.0 + OVERSHOOT) {
            low = target;
        } else {
            high = target.min(filled.max);
        }
        // No target below the mean suffices; what is cut off there is about the same.
        let least = f64::max(low, filled.total / parts);
        if fillings == FILLINGS || best <= least * (1.0 + PRECISION) {
            break;
        }
        fillings += 1;
        target = if high.is_infinite() {
            (least * (1.0 + PRECISION)).max(target + (filled.last - target) / parts)
        } else if low == 0.0 {
            (least * (1.0 + PRECISION)).min(0.5 * (least + high))
        } else {
            0.5 * (least.min(high) + high)
        };
    }
    filling(best_target).run(sequence, draft);
    Cut {
        drafted: true,
        fillings: fillings + 1,
    }
}

/// What cutting came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) drafted: bool,
    /// How often the whole sequence was gone through.
    pub(super) fillings: u32,
}

/// What a share costs if each unit is one item and nothing is cut.
pub(super) fn mean_ns(sequence: &Sequence, costs: &Costs, shares: u32) -> f64 {
    let work = sequence.units.iter().map(|unit| {
        let rates = costs.rates(unit.queries.end - unit.queries.start);
        rates.cost(unit.groups)
    });
    work.sum::<f64>() / f64::from(shares) + costs.item_ns
}

/// The item being filled.
#[derive(Clone, Copy)]
struct Open {
    begin: u32,
    end: u32,
    groups: Groups,
    rates: Rates,
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

struct Filling<'a> {
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
struct Filled {
    /// Cost of the costliest share.
    max: f64,
    /// Cost of all shares.
    total: f64,
    /// Cost of the last share that there may be, which takes all that the others left; 0 if unused.
    last: f64,
}

impl Filling<'_> {
    fn run(mut self, sequence: &Sequence, sink: &mut impl Sink) -> Filled {
        for unit in &sequence.units {
            if unit.begins_lane && !self.share_is_empty() && self.share + 1 < self.shares {
                self.end_share();
            } else if !unit.follows {
                self.close_item();
            }
            let unit_fits = self.enter(unit);
            let pieces = &sequence.pieces[unit.pieces.start as usize..unit.pieces.end as usize];
            for (i, piece) in pieces.iter().enumerate() {
                let place = Place {
                    first: i == 0,
                    last: i + 1 == pieces.len(),
                    unit_fits,
                };
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
        self.open
            .as_ref()
            .map_or(0.0, |open| self.item_cost(open, slots))
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

    /// The open item with `part` added, if it may and should take it: that is, if an item of its own
    /// would not be cheaper.
    fn merged(&self, part: &Part<'_>) -> Option<Open> {
        let open = self.open.as_ref()?;
        let own = &part.piece.queries;
        let mut merged = *open;
        merged.begin = open.begin.min(own.start);
        merged.end = open.end.max(own.end);
        merged.groups.add(part.groups, part.piece.shared);
        let count = merged.end - merged.begin;
        if count > self.max_queries {
            return None;
        }
        if count <= open.rated_queries {
            merged.kv_ns += part.groups * open.rates.of(part.piece.shared);
        } else {
            merged.rates = self.costs.rates(count);
            merged.rated_queries = self.costs.tile_queries(count);
            merged.kv_ns = merged.rates.cost(merged.groups);
        }
        let dearer = merged.kv_ns - open.kv_ns - part.groups * part.piece.rate;
        let grown = f64::from(count - (open.end - open.begin));
        let slots = match (open.complete, part.whole_unit) {
            (true, _) => 0.0,
            (false, true) => grown,
            (false, false) => grown - f64::from(own.end - own.start),
        };
        (dearer + slots * self.costs.slot_ns <= self.costs.item_ns).then_some(merged)
    }

    /// The share with `part` added: its cost, and the item that the part is in. With `slots`, that item
    /// is taken to leave partial results.
    fn with(&self, part: &Part<'_>, slots: bool) -> Added {
        if let Some(item) = self.merged(part) {
            return Added {
                cost: self.closed + self.item_cost(&item, slots),
                item,
                merged: true,
            };
        }
        let queries = &part.piece.queries;
        let count = queries.end - queries.start;
        let mut groups = Groups::default();
        groups.add(part.groups, part.piece.shared);
        let item = Open {
            begin: queries.start,
            end: queries.end,
            groups,
            rates: self.costs.rates(count),
            rated_queries: self.costs.tile_queries(count),
            kv_ns: part.groups * part.piece.rate,
            complete: part.begins_unit,
            at_unit_end: false,
        };
        let before = self
            .open
            .as_ref()
            .map_or(0.0, |open| self.item_cost(open, !open.at_unit_end));
        Added {
            cost: self.closed + before + self.item_cost(&item, slots),
            item,
            merged: false,
        }
    }

    /// Adds all of `piece` to the open item if that has its queries already, as most have, and the share takes it:
    /// what [`Filling::with`] and [`Filling::add`] would do, in a few instructions.
    #[inline]
    fn extend(&mut self, piece: &Piece, place: Place) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let own = &piece.queries;
        if own.start < open.begin || open.end < own.end {
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
            let part = |groups: u32| Part {
                piece,
                groups: f64::from(groups),
                begins_unit,
                whole_unit: begins_unit && place.unit_fits,
            };
            // Partial slots are counted on unless the unit ends here, or all of it will fit.
            let all = self.with(&part(groups), !(place.last || place.unit_fits));
            let must = self.share + 1 >= self.shares
                || (self.share_is_empty() && pages.end - pages.start <= 1);
            if must || all.cost <= self.limit {
                self.add(piece, pages, all, sink);
                if let Some(open) = &mut self.open {
                    open.at_unit_end = place.last;
                }
                return;
            }
            let fit = self.pages_that_fit(&part(0), pages.end - pages.start);
            if fit > 0 {
                let taken = fit * PAGE_GROUPS;
                let added = self.with(&part(taken), true);
                self.add(piece, pages.start..pages.start + fit, added, sink);
                pages.start += fit;
                groups -= taken;
            }
            self.end_share();
        }
    }

    fn add(&mut self, piece: &Piece, pages: Range<u32>, added: Added, sink: &mut impl Sink) {
        if !added.merged {
            self.close_item();
            sink.begin_item(self.share, piece.queries.clone());
        }
        sink.push_segment(piece, pages);
        self.open = Some(added.item);
    }

    /// Pages that the share still takes of a piece with `pages` left, fewer than all of them; at least
    /// one if the share is empty. Too few to be worth their item and slots are none.
    fn pages_that_fit(&self, nothing: &Part<'_>, pages: u32) -> u32 {
        let added = self.with(nothing, true);
        let page_ns = added.item.rates.of(nothing.piece.shared) * f64::from(PAGE_GROUPS);
        let room = (self.target - added.cost) / page_ns;
        let fit = (room.max(0.0) as u32).min(pages.saturating_sub(1));
        if self.share_is_empty() {
            return fit.max(1);
        }
        let overhead = added.cost - self.closed - self.open_cost(true);
        if f64::from(fit) * page_ns < overhead {
            0
        } else {
            fit
        }
    }
}

/// Where a piece stands in its unit.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: bool,
    last: bool,
    unit_fits: bool,
}

/// Some token groups of a piece.
struct Part<'a> {
    piece: &'a Piece,
    groups: f64,
    begins_unit: bool,
    /// It begins a unit that fits into the share at hand.
    whole_unit: bool,
}

/// What adding a part would make of a share.
struct Added {
    cost: f64,
    item: Open,
    merged: bool,
}
