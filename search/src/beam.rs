//! Beam search.

use super::answer::rank;
use super::{
    Answer, BranchId, Ending, Finish, Growth, PruneReason, SearchError, SearchMethod, SearchTree,
};
use deft_engine::Select;

/// Keeps the `width` most likely continuations at every token.
///
/// Of all continuations of all beams by one token the `2 width` most likely are looked at, best first. Those
/// that are complete become answers if they are among the first `width`; the best `width` others go on. The
/// search ends when no beam can become better than the `width` answers it has.
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
struct Candidate {
    /// Which of the beams.
    beam: usize,
    token: u32,
    log_prob: f64,
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
        let select = Select::Top { k: self.looked_at().min(tree.model().vocabulary()) };
        let mut beams = vec![tree.root()];
        let mut answers = Vec::<Answer>::new();
        while !beams.is_empty() {
            let growth = self.select(tree, &beams, &mut answers)?;
            for &beam in &beams {
                if growth.iter().all(|one| one.branch != beam) {
                    tree.release(beam, PruneReason::Lost)?;
                }
            }
            if growth.is_empty() || self.is_decided(tree, &growth, &answers)? {
                break;
            }
            let grown = tree.advance_select(&growth, &vec![select.clone(); growth.len()])?;
            beams = grown.into_iter().flatten().collect();
            if tree.stop().is_some() {
                self.interrupt(tree, &mut answers);
                break;
            }
        }
        answers.truncate(self.width);
        Ok(answers)
    }
}

impl BeamSearch {
    /// Continuations of all beams that are looked at.
    fn looked_at(&self) -> usize {
        self.width.saturating_mul(2)
    }

    /// What goes on, best first; what is complete goes to `answers`.
    fn select(
        &self,
        tree: &mut SearchTree<'_>,
        beams: &[BranchId],
        answers: &mut Vec<Answer>,
    ) -> Result<Vec<Growth>, SearchError> {
        let mut growth = Vec::new();
        for (place, candidate) in self.candidates(tree, beams)?.iter().enumerate() {
            let branch = beams[candidate.beam];
            match self.complete(tree, branch, candidate)? {
                Some(answer) if place < self.width => {
                    tree.announce(branch, &answer);
                    answers.push(answer);
                }
                Some(_) => {}
                None if growth.len() < self.width => growth.push(Growth {
                    branch,
                    token: candidate.token,
                    score: candidate.log_prob,
                }),
                None => {}
            }
        }
        rank(answers);
        Ok(growth)
    }

    /// The `2 width` most likely continuations by a token, best first.
    fn candidates(
        &self,
        tree: &SearchTree<'_>,
        beams: &[BranchId],
    ) -> Result<Vec<Candidate>, SearchError> {
        let count = self.looked_at();
        let mut candidates = Vec::new();
        for (beam, &id) in beams.iter().enumerate() {
            let branch = tree.branch(id)?;
            for (token, log_prob) in branch.row().top(count) {
                let log_prob = branch.log_prob() + log_prob;
                candidates.push(Candidate { beam, token, log_prob });
            }
        }
        candidates.retain(|candidate| candidate.log_prob > f64::NEG_INFINITY);
        candidates.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob));
        candidates.truncate(count);
        Ok(candidates)
    }

    /// The answer that a candidate is, if it is complete.
    fn complete(
        &self,
        tree: &SearchTree<'_>,
        branch: BranchId,
        candidate: &Candidate,
    ) -> Result<Option<Answer>, SearchError> {
        let mut tokens = tree.branch(branch)?.tokens().to_vec();
        if tree.codec().is_end(candidate.token) {
            let answer = self.answer(tree, tokens, candidate.log_prob, Finish::EndToken);
            return Ok(Some(answer));
        }
        tokens.push(candidate.token);
        let full = tokens.len() >= tree.longest_answer();
        let finish = self.ending.finish(tree.codec(), &tokens);
        let finish = finish.or(full.then_some(Finish::Length));
        Ok(finish.map(|finish| self.answer(tree, tokens, candidate.log_prob, finish)))
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
    fn is_decided(
        &self,
        tree: &SearchTree<'_>,
        growth: &[Growth],
        answers: &[Answer],
    ) -> Result<bool, SearchError> {
        let Some(worst) = answers.get(self.width - 1) else {
            return Ok(false);
        };
        // A log-probability only falls, so it is best spread over as many tokens as there may be.
        let longest = self.ending.tokens.min(tree.longest_answer());
        let best = growth.iter().map(|one| self.normalised(one.score, longest));
        Ok(best.fold(f64::NEG_INFINITY, f64::max) <= worst.score)
    }

    /// Takes what beams have as answers.
    fn interrupt(&self, tree: &mut SearchTree<'_>, answers: &mut Vec<Answer>) {
        let beams = tree.branches().filter(|(_, branch)| !branch.tokens().is_empty());
        let beams = beams.map(|(id, branch)| (id, branch.tokens().to_vec(), branch.log_prob()));
        let beams: Vec<_> = beams.collect();
        for (id, tokens, log_prob) in beams {
            let answer = self.answer(tree, tokens, log_prob, Finish::Interrupted);
            tree.announce(id, &answer);
            answers.push(answer);
        }
        rank(answers);
    }
}
