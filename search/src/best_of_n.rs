//! Best-of-n, self-consistency, and batches of diverse continuations.

use std::collections::BTreeMap;

use super::answer::rank;
use super::walkers::{Walker, Walkers};
use super::{
    Answer, Ending, Finish, PruneReason, Sampler, Scorer, SearchError, SearchMethod, SearchTree,
};

/// Which of several answers is best.
#[derive(Clone, Copy, Default)]
pub enum Choice<'a> {
    /// That of the highest mean log-probability.
    #[default]
    LogProb,
    /// The one that a scorer likes best. The search ends with the first that it finds to be right.
    Scorer(&'a dyn Scorer),
    /// The one most often given: self-consistency (arXiv 2203.11171). The function takes what is to be
    /// compared out of an answer's text; an answer without it has no vote. Scores are shares of the votes.
    Majority(&'a dyn Fn(&str) -> Option<String>),
}

/// `n` independent samples of an answer, of which one is chosen.
///
/// Samples share a branch until they differ: a token that several draw is run once.
#[derive(Clone)]
pub struct BestOfN<'a> {
    /// Answers to sample, as far as the token limit allows.
    pub samples: usize,
    /// Answers to sample at a time; the next one starts when one is complete.
    pub width: usize,
    /// How tokens are drawn.
    pub sampler: Sampler,
    /// When an answer is complete.
    pub ending: Ending,
    /// Sample `i` has the random numbers of path `[i]`.
    pub seed: u64,
    /// How the best is chosen.
    pub choice: Choice<'a>,
}

impl SearchMethod for BestOfN<'_> {
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        SearchError::at_least_one("samples", self.samples)?;
        SearchError::at_least_one("width", self.width)?;
        SearchError::at_least_one("ending.tokens", self.ending.tokens)?;
        self.sampler.check()?;
        let root = tree.root();
        let mut walkers = Walkers {
            active: Vec::new(),
            ending: self.ending.clone(),
            run_last: false,
            scorer: match self.choice {
                Choice::Scorer(scorer) => Some(scorer),
                _ => None,
            },
        };
        let mut answers = Vec::new();
        let mut started = 0;
        let waves = self.samples > self.width;
        if waves {
            tree.hold(root)?;
        }
        loop {
            while started < self.samples
                && walkers.active.len() < self.width
                && tree.stop().is_none()
            {
                let stream = (self.seed, vec![started as u32]);
                walkers.active.push(Walker::new(tree, root, self.sampler, stream)?);
                started += 1;
            }
            if walkers.active.is_empty() {
                break;
            }
            let through = walkers.round(tree)?;
            answers.extend(through.into_iter().map(|(_, answer)| answer));
            if answers.iter().any(|answer: &Answer| answer.solved) {
                break;
            }
        }
        if waves {
            tree.release(root, PruneReason::Done)?;
        }
        if let Choice::Majority(extract) = self.choice {
            vote(&mut answers, extract);
        }
        rank(&mut answers);
        Ok(answers)
    }
}

/// Scores complete answers by their share of the votes; of groups of one size the likelier one is ahead.
fn vote(answers: &mut Vec<Answer>, extract: &dyn Fn(&str) -> Option<String>) {
    let ballot = |answer: &Answer| {
        let complete = answer.finish != Finish::Interrupted;
        extract(&answer.text).filter(|_| complete)
    };
    let mut groups = BTreeMap::<Option<String>, Vec<Answer>>::new();
    for answer in answers.drain(..) {
        groups.entry(ballot(&answer)).or_default().push(answer);
    }
    let none = groups.remove(&None).unwrap_or_default();
    let mut groups: Vec<Vec<Answer>> = groups.into_values().collect();
    let votes: usize = groups.iter().map(Vec::len).sum();
    for group in &mut groups {
        group.sort_by(|a, b| b.mean_log_prob().total_cmp(&a.mean_log_prob()));
    }
    groups.sort_by(|a, b| {
        let likely = |group: &[Answer]| group[0].mean_log_prob();
        (b.len().cmp(&a.len())).then(likely(b).total_cmp(&likely(a)))
    });
    for group in groups {
        let share = group.len() as f64 / votes as f64;
        answers.extend(group.into_iter().map(|answer| Answer { score: share, ..answer }));
    }
    answers.extend(none.into_iter().map(|answer| Answer { score: 0.0, ..answer }));
}

/// Continuations of one prompt, each drawn in its own way: a few-shot batch.
#[derive(Clone, Debug)]
pub struct DiverseBatch {
    /// A sampler for each continuation.
    pub samplers: Vec<Sampler>,
    /// When a continuation is complete.
    pub ending: Ending,
    /// Continuation `i` has the random numbers of path `[i]`.
    pub seed: u64,
}

impl SearchMethod for DiverseBatch {
    /// The continuations in the order of their samplers, not ranked.
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        SearchError::at_least_one("samplers.len()", self.samplers.len())?;
        SearchError::at_least_one("ending.tokens", self.ending.tokens)?;
        let mut walkers = Walkers {
            active: Vec::new(),
            ending: self.ending.clone(),
            run_last: false,
            scorer: None,
        };
        for (index, sampler) in self.samplers.iter().enumerate() {
            sampler.check()?;
            let stream = (self.seed, vec![index as u32]);
            walkers.active.push(Walker::new(tree, tree.root(), *sampler, stream)?);
        }
        let mut answers = Vec::new();
        while !walkers.active.is_empty() {
            let through = walkers.round(tree)?;
            answers.extend(through.into_iter().map(|(walker, answer)| (walker.path, answer)));
        }
        answers.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}
