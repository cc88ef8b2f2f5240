//! Drafts that grow, as beam search has them: what a step adds, and the best of all that may follow.

use std::cmp::{Ordering, Reverse};

use deft::NodeKey;

use crate::ModelError;
use crate::select::Selected;

/// A token that a draft grows by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrownToken {
    /// What it comes after: the trunk or a node of its draft.
    pub parent: NodeKey,
    /// The token.
    pub token: u32,
    /// How good the path is with it, a sum of log-probabilities: finite.
    pub score: f64,
}

/// A token that may follow one of a step's rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestToken {
    /// Which of the tokens that the step added.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// Its natural log-probability.
    pub log_prob: f64,
}

/// What a step of a growing draft comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Grown {
    /// A node for each token.
    pub nodes: Vec<NodeKey>,
    /// Of all tokens after all rows those with the highest `score + log_prob`, best first; where that is equal the lower
    /// row first, and the lower token. Rows without a softmax and tokens of probability 0 are left out, so there may be
    /// fewer than were asked for.
    pub best: Vec<BestToken>,
    /// The first row without a softmax: its logits hold a NaN, an infinity, or nothing above -inf.
    pub undefined: Option<u32>,
}

impl Grown {
    /// The best of `rows`, each the `k` most likely tokens of its row or all there are: the definition.
    pub fn of(nodes: Vec<NodeKey>, rows: &[Selected], grown: &[GrownToken], k: usize) -> Self {
        let (mut best, mut undefined) = (Vec::new(), None);
        for (row, selected) in (0..).zip(rows) {
            let Selected::Tokens { ids, log_probs } = selected else { continue };
            if log_probs.iter().any(|log_prob| log_prob.is_nan()) {
                undefined = undefined.or(Some(row));
                continue;
            }
            let tokens = ids.iter().zip(log_probs);
            let tokens = tokens.filter(|&(_, &log_prob)| log_prob > f64::NEG_INFINITY);
            best.extend(tokens.map(|(&token, &log_prob)| BestToken { row, token, log_prob }));
        }
        sort(&mut best, grown);
        best.truncate(k);
        Self { nodes, best, undefined }
    }
}

/// Sorts continuations as [`Grown::best`] has them.
pub(crate) fn sort(best: &mut [BestToken], grown: &[GrownToken]) {
    let total = |one: &BestToken| grown[one.row as usize].score + one.log_prob;
    best.sort_by_cached_key(|one| (Reverse(Total(total(one))), one.row, one.token));
}

/// A number that is ordered as [`f64::total_cmp`] has it.
struct Total(f64);

impl PartialEq for Total {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Total {}

impl PartialOrd for Total {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Total {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Whether scores are numbers, and something is asked for.
pub(crate) fn check(grown: &[GrownToken], k: usize) -> Result<(), ModelError> {
    let refused = |option, value: String, expected: &str| {
        Err(ModelError::Option { option, value, expected: expected.to_owned() })
    };
    if k == 0 {
        return refused("k", k.to_string(), "at least 1");
    }
    match grown.iter().find(|one| !one.score.is_finite()) {
        Some(one) => refused("score", one.score.to_string(), "finite"),
        None => Ok(()),
    }
}
