//! Why something could not be planned.

/// Why a plan could not be made; nothing was changed.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A number of the configuration is out of range.
    #[error("{name} is {value}; it must be between {min} and {max}")]
    OutOfRange {
        /// Which field of [`PlanConfig`](super::PlanConfig).
        name: &'static str,
        /// What it was.
        value: u32,
        /// Least allowed.
        min: u32,
        /// Most allowed.
        max: u32,
    },
    /// A rate or a cost of the cost model is no positive finite number.
    #[error("cost model: {name} is {value}; it must be positive and finite")]
    BadCost {
        /// Which field of [`CostModel`](super::CostModel).
        name: &'static str,
        /// What it was.
        value: f64,
    },
    /// There is nothing to plan, or more than a plan holds.
    #[error("the view has {queries} queries; a plan holds 1 to {max}")]
    Queries {
        /// Queries of the view.
        queries: u32,
        /// Most allowed.
        max: u32,
    },
    /// The order of the queries is no permutation.
    #[error("query_order does not name each of the view's {queries} rows once")]
    QueryOrder {
        /// Queries of the view.
        queries: u32,
    },
    /// A run of the view contradicts another or the view's arrays.
    #[error("run {run} of the view: {what}")]
    BadRun {
        /// Index of the run.
        run: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The encoded plan would not fit its 32-bit indices, or a program its 16-bit ones.
    #[error("the plan needs {words} {of}; the limit is {max}")]
    TooLarge {
        /// Entries needed.
        words: u64,
        /// Of which array.
        of: &'static str,
        /// Most allowed.
        max: u64,
    },
}
