//! Small tasks with checkers, to see what search is worth on a model.
//!
//! Prompts are a few solved examples and a question; answers are a line or three. [`evaluate`] runs a method
//! on many problems of a task. They are here because users of `deft-search --task` and of its benchmark can so run the
//! same problems with methods of their own.

mod evaluation;
mod game_of_24;
mod lists;
mod sum;

pub use evaluation::{Evaluation, Method, Setting, evaluate};
pub use game_of_24::GameOf24;
pub use lists::{Acrostic, DigitSort};
pub use sum::DistinctSum;

use crate::{Candidate, Ending, Scorer, Verdict};

/// A family of problems.
pub trait Task {
    /// A short name.
    fn name(&self) -> &'static str;

    /// The problem of this seed.
    fn problem(&self, seed: u64) -> Box<dyn Problem>;
}

/// What can be said of the beginning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// It keeps to the rules so far.
    Open,
    /// It breaks a rule, whatever follows.
    Dead,
    /// It is a whole answer, and right.
    Right,
}

/// A question whose answers can be checked.
pub trait Problem {
    /// What the model gets: examples and the question.
    fn prompt(&self) -> String;

    /// When an answer is complete.
    fn ending(&self) -> Ending;

    /// When a thought, a part of an answer, is complete.
    fn thought(&self) -> Ending;

    /// Thoughts of an answer.
    fn thoughts(&self) -> usize;

    /// The answer in a form in which equal answers are equal; `None` if the text holds none.
    fn extract(&self, text: &str) -> Option<String>;

    /// Whether an answer that [`Problem::extract`] gave is right.
    fn is_right(&self, answer: &str) -> bool;

    /// Whether an answer that begins like this can be right, as far as the rules tell at once. It looks for
    /// no solution.
    fn prospect(&self, text: &str) -> Prospect;
}

/// Judges by a problem's rules, and what is open by its mean log-probability.
#[derive(Clone, Copy)]
pub struct Checker<'a>(pub &'a dyn Problem);

impl Scorer for Checker<'_> {
    fn score(&self, candidate: &Candidate<'_>) -> Verdict {
        let ending = self.0.ending();
        let answer = ending.trim(candidate.text);
        if candidate.complete || answer.len() < candidate.text.len() {
            return if is_right(self.0, answer) { Verdict::Solved } else { Verdict::Dead };
        }
        match self.0.prospect(candidate.text) {
            Prospect::Dead => Verdict::Dead,
            Prospect::Right => Verdict::Solved,
            Prospect::Open => crate::MeanLogProb.score(candidate),
        }
    }
}

fn is_right(problem: &dyn Problem, text: &str) -> bool {
    let answer = problem.extract(text);
    answer.is_some_and(|answer| problem.is_right(&answer))
}

/// The complete parts of a list, those with a comma or a line's end after them.
fn complete_parts<'a>(text: &'a str, separator: &[char]) -> Vec<&'a str> {
    let mut parts: Vec<&str> = text.split(separator).map(str::trim).collect();
    parts.pop();
    parts
}
