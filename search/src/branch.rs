//! The live ends of a search's tree.

use std::fmt;
use std::rc::Rc;

use super::SearchError;
use deft::NodeKey;
use deft_engine::select::{log_sum_exp, most_likely};
use deft_engine::{Select, Selected};

/// Names a branch of one search; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub(super) u64);

impl BranchId {
    /// Counts from 0, in the order in which branches were made.
    pub fn index(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "branch {}", self.0)
    }
}

/// A place in the tree from which the search may go on, and what the model says there.
#[derive(Clone, Debug)]
pub struct Branch {
    pub(super) node: NodeKey,
    pub(super) tokens: Vec<u32>,
    pub(super) log_prob: f64,
    pub(super) score: f64,
    pub(super) held: bool,
    pub(super) row: Rc<Row>,
}

impl Branch {
    /// Tokens since the prompt.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Sum of their log-probabilities.
    pub fn log_prob(&self) -> f64 {
        self.log_prob
    }

    /// What decides who goes when pages run out: the last growth's score, or what
    /// [`SearchTree::set_score`](super::SearchTree::set_score) said.
    pub fn score(&self) -> f64 {
        self.score
    }

    /// What the model says of the next token.
    pub fn row(&self) -> &Rc<Row> {
        &self.row
    }

    /// The model's node.
    pub fn node(&self) -> NodeKey {
        self.node
    }
}

/// A request, and what the model answered.
pub(super) type Asked = (Select, Selected);

/// What the model says of the token after a branch: all of its logits, or what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    select: Select,
    selected: Selected,
    /// Of the logits, where they are there.
    log_sum: f64,
}

impl Row {
    /// `None` if the logits hold NaN or no finite value.
    pub(super) fn new(select: Select, selected: Selected) -> Option<Self> {
        let (log_sum, defined) = match &selected {
            Selected::Logits(logits) => {
                let log_sum = log_sum_exp(logits);
                (log_sum, log_sum.is_finite())
            }
            Selected::Tokens { log_probs, .. } => (0.0, !log_probs.iter().any(|x| x.is_nan())),
        };
        defined.then_some(Self { select, selected, log_sum })
    }

    /// The row after `branch`.
    pub(super) fn after(
        branch: BranchId,
        (select, selected): Asked,
    ) -> Result<Rc<Self>, SearchError> {
        let row = Self::new(select, selected);
        row.map(Rc::new).ok_or(SearchError::Logits { branch })
    }

    /// Whether it says how likely `token` is.
    pub(super) fn check(&self, token: u32) -> Result<(), SearchError> {
        if self.log_prob(token).is_nan() {
            let (name, value) = ("token", token.to_string());
            return Err(SearchError::Argument { name, value, limit: "one that was asked for" });
        }
        Ok(())
    }

    /// `[vocabulary]`; empty where something else was asked for.
    pub fn logits(&self) -> &[f32] {
        match &self.selected {
            Selected::Logits(logits) => logits,
            Selected::Tokens { .. } => &[],
        }
    }

    /// The natural logarithm of `token`'s probability; -inf for a token beyond the vocabulary, and NaN for one that was
    /// not asked for.
    pub fn log_prob(&self, token: u32) -> f64 {
        match &self.selected {
            Selected::Logits(logits) => {
                let logit = logits.get(token as usize);
                logit.map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - self.log_sum)
            }
            Selected::Tokens { ids, log_probs } => {
                let place = ids.iter().position(|&id| id == token);
                place.map_or(f64::NAN, |place| log_probs[place])
            }
        }
    }

    /// The `k` most likely tokens with their log-probabilities, most likely first: all where `k` is 0. A row of the most
    /// likely has no more than were asked for.
    pub(super) fn top(&self, k: usize) -> Vec<(u32, f64)> {
        match &self.selected {
            Selected::Logits(logits) => {
                let tokens = match k {
                    0 => (0..logits.len() as u32).collect(),
                    _ => most_likely(logits, k),
                };
                tokens.into_iter().map(|token| (token, self.log_prob(token))).collect()
            }
            Selected::Tokens { ids, log_probs } => {
                let entries = ids.iter().copied().zip(log_probs.iter().copied());
                entries.take(k).collect()
            }
        }
    }

    /// The token that `at` draws, if the model was asked to draw it.
    pub(super) fn drawn(&self, at: f64) -> Option<u32> {
        match (&self.select, &self.selected) {
            (Select::Draw { at: asked, .. }, Selected::Tokens { ids, .. }) => {
                asked.iter().position(|&one| one == at).map(|place| ids[place])
            }
            _ => None,
        }
    }
}

/// One request whose answer has those of both.
pub(super) fn join(a: Select, b: Select) -> Select {
    match (a, b) {
        (Select::Top { k: a }, Select::Top { k: b }) => Select::Top { k: a.max(b) },
        (Select::Draw { temperature, mut at }, Select::Draw { temperature: other, at: more })
            if temperature == other =>
        {
            at.extend(more);
            Select::Draw { temperature, at }
        }
        _ => Select::Logits,
    }
}
