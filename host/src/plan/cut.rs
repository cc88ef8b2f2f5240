//! Cutting a sequence of pieces into shares of near-equal cost.
//!
//! This is the linear partition problem: consecutive shares, the costliest as cheap as can be. Filling
//! shares one after another up to a target cost is optimal for a given target; a few fillings find the
//! least target that suffices, each moving it by what the last share had too much or too little.

use super::cost::Costs;
use super::draft::Draft;
use super::fill::{Filling, OVERSHOOT, Trial};
use super::sequence::Sequence;

/// The search ends when the costliest share is this close to what it could be.
pub(super) const PRECISION: f64 = 0.01;
/// How the least target is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    /// Nothing is drafted if some share would cost this and more: one filling tells.
    pub(super) worth: f64,
    /// What to try first, if anything is known: it is good enough if it makes a share that is worth it.
    pub(super) guess: Option<f64>,
    /// Fillings tried at most.
    pub(super) fillings: u32,
}

impl Search {
    /// The least target, whatever it is.
    pub(super) const FULL: Self = Self { worth: f64::INFINITY, guess: None, fillings: 8 };
}

/// What cutting came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) drafted: bool,
    /// The costliest share costs this, and could not cost less by more than [`PRECISION`].
    pub(super) max: f64,
    pub(super) exact: bool,
    /// How often the whole sequence was gone through.
    pub(super) fillings: u32,
}

/// Cuts `sequence` into at most `shares` shares whose items hold at most `max_queries` queries. `draft` is
/// empty and has at least as many.
pub(super) fn cut(
    sequence: &Sequence,
    costs: &Costs,
    max_queries: u32,
    shares: u32,
    search: Search,
    draft: &mut Draft,
) -> Cut {
    let filling = |target| Filling::new(costs, max_queries, shares, target);
    let worth = search.worth;
    let parts = f64::from(shares);
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let most = worth * (1.0 - PRECISION);
    let mut target = match search.guess {
        Some(guess) => guess.min(most),
        None if most.is_finite() => most,
        None => mean_ns(sequence, costs, shares),
    };
    let mut best_target = target;
    let mut cut = Cut { drafted: false, max: f64::INFINITY, exact: false, fillings: 0 };
    loop {
        let filled = filling(target).run(sequence, &mut Trial);
        cut.fillings += 1;
        if filled.max < cut.max {
            (cut.max, best_target) = (filled.max, target);
        }
        if filled.last > target * (1.0 + OVERSHOOT) {
            if cut.max >= worth && target >= most {
                return cut;
            }
            low = target;
        } else {
            high = target.min(filled.max);
        }
        // No target below the mean suffices; what is cut off there is about the same.
        let least = f64::max(low, filled.total / parts);
        cut.exact = cut.max <= least * (1.0 + PRECISION);
        let rough = search.guess.is_some() && cut.max < worth;
        if cut.exact || rough || cut.fillings >= search.fillings {
            break;
        }
        let middle = 0.5 * (least.min(high) + high);
        target = if high.is_infinite() {
            (least * (1.0 + PRECISION)).max(target + (filled.last - target) / parts)
        } else if low > 0.0 {
            middle
        } else {
            (least * (1.0 + PRECISION)).min(middle)
        };
        target = target.min(most);
    }
    if cut.max >= worth {
        return cut;
    }
    filling(best_target).run(sequence, draft);
    cut.drafted = true;
    cut.fillings += 1;
    cut
}

/// What a share costs if each unit is one item and nothing is cut.
pub(super) fn mean_ns(sequence: &Sequence, costs: &Costs, shares: u32) -> f64 {
    let work = sequence.units.iter().map(|unit| {
        let rates = costs.rates(unit.queries.end - unit.queries.start);
        rates.cost(unit.groups)
    });
    work.sum::<f64>() / f64::from(shares) + costs.item_ns
}
