//! Judging unfinished and finished answers.

use super::Answer;

/// What a scorer sees of a branch.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The text since the prompt; a stop text that ended its last thought is still there.
    pub text: &'a str,
    /// The tokens since the prompt.
    pub tokens: &'a [u32],
    /// Sum of the tokens' log-probabilities.
    pub log_prob: f64,
    /// Whether nothing will be added.
    pub complete: bool,
}

/// What a scorer says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Go on with it if others are not better: higher is better.
    Score(f64),
    /// It is right; the search may end.
    Solved,
    /// It cannot become right.
    Dead,
}

/// Judges candidates.
pub trait Scorer {
    /// What is to be thought of `candidate`.
    fn score(&self, candidate: &Candidate<'_>) -> Verdict;
}

impl<F: Fn(&Candidate<'_>) -> Verdict> Scorer for F {
    fn score(&self, candidate: &Candidate<'_>) -> Verdict {
        self(candidate)
    }
}

/// Scores by the mean log-probability of a token: how sure the model is.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanLogProb;

impl Scorer for MeanLogProb {
    fn score(&self, candidate: &Candidate<'_>) -> Verdict {
        Verdict::Score(candidate.log_prob / candidate.tokens.len().max(1) as f64)
    }
}

impl Answer {
    /// Takes over a scorer's verdict. What cannot be right ranks last; what is right keeps its mean
    /// log-probability as its score.
    pub(super) fn judge(&mut self, scorer: &dyn Scorer, complete: bool) {
        let verdict = scorer.score(&Candidate {
            text: &self.text,
            tokens: &self.tokens,
            log_prob: self.log_prob,
            complete,
        });
        self.score = match verdict {
            Verdict::Score(score) => score,
            Verdict::Solved => self.mean_log_prob(),
            Verdict::Dead => f64::NEG_INFINITY,
        };
        self.solved = verdict == Verdict::Solved;
    }
}
