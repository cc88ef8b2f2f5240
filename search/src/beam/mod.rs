//! Beam search.

mod draft;
mod nodes;

use super::answer::rank;
use super::{Answer, BranchId, Ending, Finish, SearchError, SearchMethod, SearchTree};

/// Keeps the `width` most likely continuations at every token.
///
/// Of all continuations of all beams by one token the `2 width` most likely are looked at, best first. Those
/// that are complete become answers if they are among the first `width`; the best `width` others go on. The
/// search ends when no beam can become better than the `width` answers it has.
///
/// Beams are the newest tokens of one draft that grows ([`TreeModel::grow_draft`](deft_engine::TreeModel::grow_draft)),
/// where the model has that. A beam by itself, beams under a limit of nodes and those of other models are nodes of their
/// own. Answers are the same.
#[derive(Clone, Debug)]
pub struct BeamSearch {
    /// Beams, at least 1; those that there are no continuations for are left out.
    pub width: usize,
    /// An answer's score is its log-probability over its length to this power; 0 or more. At 0 short answers
    /// are favoured, 1 is the mean.
    pub length_penalty: f64,
    /// When an answer is complete.
    pub ending: Ending,
}

/// A beam and a token after it.
#[derive(Clone, Copy)]
struct Candidate {
    /// Which of the beams.
    beam: usize,
    token: u32,
    log_prob: f64,
}

/// The beams of a step, whatever they are to the model.
trait Beams {
    /// Tokens of each since the prompt.
    fn length(&self) -> usize;
    /// The tokens of one.
    fn tokens(&self, beam: usize) -> Vec<u32>;
    /// The branch that one is shown as.
    fn branch(&self, beam: usize) -> BranchId;
}

impl SearchMethod for BeamSearch {
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        SearchError::at_least_one("width", self.width)?;
        SearchError::at_least_one("ending.tokens", self.ending.tokens)?;
        if !(self.length_penalty >= 0.0 && self.length_penalty.is_finite()) {
            return Err(SearchError::Argument {
                name: "length_penalty",
                value: self.length_penalty.to_string(),
                limit: "0 or more, and finite",
            });
        }
        let in_draft = self.width > 1 && tree.model.grows_drafts() && !tree.limits_nodes();
        let mut answers = match in_draft {
            true => self.search_draft(tree)?,
            false => self.search_nodes(tree)?,
        };
        answers.truncate(self.width);
        Ok(answers)
    }
}

impl BeamSearch {
    /// Continuations of all beams that are looked at.
    fn looked_at(&self) -> usize {
        self.width.saturating_mul(2)
    }

    /// What goes on of `candidates`, best first; what is complete goes to `answers`.
    fn divide(
        &self,
        tree: &mut SearchTree<'_>,
        candidates: &[Candidate],
        beams: &dyn Beams,
        answers: &mut Vec<Answer>,
    ) -> Vec<Candidate> {
        let mut growth = Vec::with_capacity(self.width.min(candidates.len()));
        for (place, candidate) in candidates.iter().enumerate() {
            match self.finish(tree, candidate, beams) {
                Some(finish) if place < self.width => {
                    let mut tokens = beams.tokens(candidate.beam);
                    if finish != Finish::EndToken {
                        tokens.push(candidate.token);
                    }
                    let answer = self.answer(tree, tokens, candidate.log_prob, finish);
                    tree.announce(beams.branch(candidate.beam), &answer);
                    answers.push(answer);
                }
                Some(_) => {}
                None if growth.len() < self.width => growth.push(*candidate),
                None => {}
            }
        }
        rank(answers);
        growth
    }

    /// Why a candidate is complete, if it is.
    fn finish(
        &self,
        tree: &SearchTree<'_>,
        candidate: &Candidate,
        beams: &dyn Beams,
    ) -> Option<Finish> {
        if tree.codec().is_end(candidate.token) {
            return Some(Finish::EndToken);
        }
        let length = beams.length() + 1;
        let full = length >= tree.longest_answer() || length >= self.ending.tokens;
        let full = full.then_some(Finish::Length);
        if self.ending.stops.is_empty() {
            return full;
        }
        let mut tokens = beams.tokens(candidate.beam);
        tokens.push(candidate.token);
        self.ending.finish(tree.codec(), &tokens).or(full)
    }

    fn answer(
        &self,
        tree: &SearchTree<'_>,
        tokens: Vec<u32>,
        log_prob: f64,
        finish: Finish,
    ) -> Answer {
        let ended = usize::from(finish == Finish::EndToken);
        let text = tree.codec().decode(&tokens);
        Answer {
            text: self.ending.trim(&text).to_owned(),
            score: self.normalised(log_prob, tokens.len() + ended),
            tokens,
            log_prob,
            solved: false,
            finish,
        }
    }

    fn normalised(&self, log_prob: f64, tokens: usize) -> f64 {
        log_prob / (tokens.max(1) as f64).powf(self.length_penalty)
    }

    /// Whether no beam can become better than the answers there are.
    fn is_decided(&self, tree: &SearchTree<'_>, growth: &[Candidate], answers: &[Answer]) -> bool {
        let Some(worst) = answers.get(self.width - 1) else {
            return false;
        };
        // A log-probability only falls, so it is best spread over as many tokens as there may be.
        let longest = self.ending.tokens.min(tree.longest_answer());
        let best = growth.iter().map(|one| self.normalised(one.log_prob, longest));
        best.fold(f64::NEG_INFINITY, f64::max) <= worst.score
    }

    /// Takes what a beam has as an answer, the search having ended.
    fn interrupt(
        &self,
        tree: &mut SearchTree<'_>,
        (branch, tokens, log_prob): (BranchId, Vec<u32>, f64),
        answers: &mut Vec<Answer>,
    ) {
        if tokens.is_empty() {
            return;
        }
        let answer = self.answer(tree, tokens, log_prob, Finish::Interrupted);
        tree.announce(branch, &answer);
        answers.push(answer);
    }
}

/// Sorts candidates, the best first and equal ones as they were, and leaves out those without probability and all but the
/// first `count`.
fn best(candidates: &mut Vec<Candidate>, count: usize) {
    candidates.retain(|candidate| candidate.log_prob > f64::NEG_INFINITY);
    candidates.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob));
    candidates.truncate(count);
}
