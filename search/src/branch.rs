//! The live ends of a search's tree.

use std::fmt;
use std::rc::Rc;

use deft::NodeKey;

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

    /// The model's logits for the next token.
    pub fn row(&self) -> &Rc<Row> {
        &self.row
    }

    /// The model's node.
    pub fn node(&self) -> NodeKey {
        self.node
    }
}

/// Logits of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    logits: Vec<f32>,
    log_sum: f64,
}

impl Row {
    /// `None` if `logits` hold NaN or no finite value.
    pub(super) fn new(logits: &[f32]) -> Option<Self> {
        let log_sum = super::sampler::log_sum_exp(logits);
        log_sum.is_finite().then(|| Self { logits: logits.to_vec(), log_sum })
    }

    /// `[vocabulary]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The natural logarithm of `token`'s probability; -inf for a token beyond the vocabulary.
    pub fn log_prob(&self, token: u32) -> f64 {
        let logit = self.logits.get(token as usize);
        logit.map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - self.log_sum)
    }
}
