//! Constants of the cost model that predict timed plans better.

use deft::plan::CostModel;

use crate::fit::Case;
use crate::stats::Spread;
use crate::trees::set_cost;

/// The first step of a constant in the search, and the one that ends it: factors, less 1.
const FIRST_STEP: f64 = 0.32;
const LAST_STEP: f64 = 0.01;
/// Weight of the worst row beside the median one.
const WORST: f64 = 0.25;

/// Sizes of the errors of several rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Errors {
    pub(crate) rows: usize,
    pub(crate) median: f64,
    pub(crate) worst: f64,
}

impl Errors {
    /// `None` of no rows.
    pub(crate) fn of<'a>(
        cases: impl Iterator<Item = &'a mut Case>,
        cost: &CostModel,
    ) -> Option<Self> {
        let sizes: Vec<f64> = cases.map(|case| case.error(cost).abs()).collect();
        (!sizes.is_empty()).then(|| Self {
            rows: sizes.len(),
            worst: sizes.iter().copied().fold(0.0, f64::max),
            median: Spread::of(sizes).median,
        })
    }

    pub(crate) fn loss(&self) -> f64 {
        self.median + WORST * self.worst
    }
}

/// Constants from `start` on that predict `cases` better: one is moved after the other, by ever smaller factors.
pub(crate) fn refit(cases: &mut [Case], start: CostModel) -> CostModel {
    let loss = |cases: &mut [Case], cost: &CostModel| {
        Errors::of(cases.iter_mut(), cost).map_or(0.0, |errors| errors.loss())
    };
    let mut best = start;
    let mut least = loss(cases, &best);
    let names: Vec<String> = constants(&best).into_iter().map(|(name, _)| name).collect();
    let mut step = FIRST_STEP;
    while step >= LAST_STEP {
        let before = least;
        for (at, name) in names.iter().enumerate() {
            for factor in [1.0 + step, 1.0 / (1.0 + step)] {
                let mut tried = best;
                set(&mut tried, name, constants(&best)[at].1 * factor);
                let found = loss(cases, &tried);
                if found < least {
                    (best, least) = (tried, found);
                }
            }
        }
        if least >= before {
            step /= 2.0;
        }
    }
    best
}

/// Three digits of each constant: more than measurements give.
pub(crate) fn rounded(mut cost: CostModel) -> CostModel {
    for (name, value) in constants(&cost) {
        let unit = 10f64.powf(value.log10().floor() - 2.0);
        set(&mut cost, &name, (value / unit).round() * unit);
    }
    cost
}

pub(crate) fn as_rust(cost: CostModel) -> String {
    let fields = constants(&cost).into_iter().map(|(name, value)| {
        let digits = if value < 100.0 { 3 } else { 1 };
        format!("    {name}: {value:.digits$},\n")
    });
    format!("CostModel {{\n{}}}", fields.collect::<String>())
}

/// The constants of `cost`, by name.
fn constants(cost: &CostModel) -> Vec<(String, f64)> {
    let fields = serde_json::to_value(cost).expect("a cost model is numbers with names");
    let fields = fields.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
}

fn set(cost: &mut CostModel, name: &str, value: f64) {
    set_cost(cost, name, value).expect("a constant of the model");
}
