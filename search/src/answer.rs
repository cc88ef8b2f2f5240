//! What comes out of a search, and when an answer is complete.

use std::time::Duration;

use super::TextCodec;
use deft_engine::Traffic;

/// A continuation of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text, up to the stop text that ended it.
    pub text: String,
    /// All its tokens, without an end token.
    pub tokens: Vec<u32>,
    /// Sum of its tokens' log-probabilities, the end token's included.
    pub log_prob: f64,
    /// What the method ranked it by; higher is better.
    pub score: f64,
    /// Whether a scorer found it to be right.
    pub solved: bool,
    /// Why it ends where it ends.
    pub finish: Finish,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// By an end token.
    EndToken,
    /// By a stop text.
    StopText,
    /// It is as long as allowed, or as the model's context.
    Length,
    /// The search ended first, or its branch was pruned.
    Interrupted,
}

/// When an answer, or a thought, is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Most tokens.
    pub tokens: usize,
    /// Texts that end it wherever they appear.
    pub stops: Vec<String>,
}

impl Ending {
    /// At most `tokens`, with no stop text.
    pub fn at(tokens: usize) -> Self {
        let stops = Vec::new();
        Self { tokens, stops }
    }

    /// The same with one more stop text.
    #[must_use]
    pub fn or_text(mut self, stop: &str) -> Self {
        self.stops.push(stop.to_owned());
        self
    }

    /// Whether `tokens`, none of which is an end token, are complete.
    pub fn finish(&self, codec: &dyn TextCodec, tokens: &[u32]) -> Option<Finish> {
        if !self.stops.is_empty() && self.cut(&codec.decode(tokens)).is_some() {
            return Some(Finish::StopText);
        }
        (tokens.len() >= self.tokens).then_some(Finish::Length)
    }

    /// `text` before the first stop text.
    pub fn trim<'a>(&self, text: &'a str) -> &'a str {
        &text[..self.cut(text).unwrap_or(text.len())]
    }

    fn cut(&self, text: &str) -> Option<usize> {
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        stops.filter_map(|stop| text.find(stop)).min()
    }
}

impl Answer {
    /// Mean log-probability of a token, the end token's included.
    pub fn mean_log_prob(&self) -> f64 {
        let ended = usize::from(self.finish == Finish::EndToken);
        self.log_prob / (self.tokens.len() + ended).max(1) as f64
    }
}

/// Sorts answers: right ones first, then complete ones, then by score; the earlier of equals first.
pub(super) fn rank(answers: &mut [Answer]) {
    let complete = |answer: &Answer| answer.finish != Finish::Interrupted;
    answers.sort_by(|a, b| {
        let right = b.solved.cmp(&a.solved);
        right.then(complete(b).cmp(&complete(a))).then(b.score.total_cmp(&a.score))
    });
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The method was through.
    Finished,
    /// [`Limits::tokens`](super::Limits::tokens) were run.
    Budget,
    /// [`Cancel::cancel`](super::Cancel::cancel) was called.
    Cancelled,
}

/// What a search took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Those of them that were not run, since the model held them of an earlier prompt.
    pub prompt_tokens_saved: u64,
    /// Passes through the model after the prompt's.
    pub steps: u64,
    /// Tokens run after the prompt, drafted ones included; never more than the limit.
    pub tokens: u64,
    /// Tokens moved to merge chains of small nodes.
    pub moved: u64,
    /// Most nodes held at a time, without those of prompts that the model keeps.
    pub peak_nodes: usize,
    /// Most pages held at a time, without those of prompts that the model keeps.
    pub peak_pages: u32,
    /// Branches pruned for want of pages.
    pub pruned_for_pages: u64,
    /// What attention read, the prompt's run included.
    pub traffic: Traffic,
    /// Wall-clock time, the prompt's run included.
    pub elapsed: Duration,
}

/// What came out of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The best first.
    pub answers: Vec<Answer>,
    /// Why the search ended.
    pub stop: Stop,
    /// What it took.
    pub stats: Stats,
}
