//! Sampled continuations, which share a branch for as long as they agree.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::branch::join;
use super::sampler::{Choices, leaf_stream};
use super::{
    Answer, BranchId, Ending, Finish, Growth, PruneReason, Sampler, Scorer, SearchError, SearchTree,
};
use deft_engine::Select;

/// One continuation that is being sampled.
#[derive(Debug)]
pub(super) struct Walker {
    /// Where it is; where it was last once its tokens are not run any more.
    pub(super) branch: BranchId,
    /// Which children it took from the prompt on: its random numbers follow from it.
    pub(super) path: Vec<u32>,
    /// All tokens since the prompt.
    tokens: Vec<u32>,
    finish: Option<Finish>,
    sampler: Sampler,
    rng: ChaCha8Rng,
    /// The number that its next token is drawn with: known early, so that the model can be asked to draw.
    at: f64,
    /// Tokens before this one are of earlier walks.
    begin: usize,
    log_prob: f64,
    /// `log_prob` before the last token.
    log_prob_before: f64,
}

impl Walker {
    /// A walker at `branch`.
    pub(super) fn new(
        tree: &SearchTree<'_>,
        branch: BranchId,
        sampler: Sampler,
        (seed, path): (u64, Vec<u32>),
    ) -> Result<Self, SearchError> {
        let record = tree.branch(branch)?;
        let mut rng = leaf_stream(seed, &path);
        Ok(Self {
            branch,
            sampler,
            at: rng.random(),
            rng,
            path,
            begin: record.tokens().len(),
            tokens: record.tokens().to_vec(),
            log_prob: record.log_prob(),
            log_prob_before: record.log_prob(),
            finish: None,
        })
    }

    /// Draws the next token, which may be the last.
    fn draw(
        &mut self,
        tree: &SearchTree<'_>,
        choices: &mut BTreeMap<BranchId, (Sampler, Choices)>,
        ending: &Ending,
    ) -> Result<u32, SearchError> {
        let row = tree.branch(self.branch)?.row();
        let token = row.drawn(self.at).unwrap_or_else(|| {
            let known = choices.remove(&self.branch).filter(|(of, _)| *of == self.sampler);
            let (_, weighed) = known.unwrap_or_else(|| (self.sampler, self.sampler.weigh(row)));
            let token = weighed.at(self.at);
            choices.insert(self.branch, (self.sampler, weighed));
            token
        });
        self.at = self.rng.random();
        self.log_prob_before = self.log_prob;
        self.log_prob += row.log_prob(token);
        if tree.codec().is_end(token) {
            self.finish = Some(Finish::EndToken);
            return Ok(token);
        }
        self.tokens.push(token);
        self.finish = ending.finish(tree.codec(), &self.tokens[self.begin..]);
        if self.tokens.len() >= tree.longest_answer() {
            self.finish.get_or_insert(Finish::Length);
        }
        Ok(token)
    }

    /// Takes back a token that did not get into the tree.
    fn interrupt(&mut self) {
        self.tokens.pop();
        self.log_prob = self.log_prob_before;
        self.finish = Some(Finish::Interrupted);
    }

    /// Whether it may go on after this walk, if walks' last tokens are run.
    fn may_go_on(&self, tree: &SearchTree<'_>) -> bool {
        matches!(self.finish, Some(Finish::StopText | Finish::Length))
            && self.tokens.len() < tree.longest_answer()
    }

    /// What the model is to be asked once the last token is run.
    fn select(&self, tree: &SearchTree<'_>) -> Select {
        match self.sampler.select(self.at, tree.model().vocabulary()) {
            // Whoever goes on from here draws with other numbers.
            Select::Draw { .. } if self.finish.is_some() => Select::Logits,
            select => select,
        }
    }

    fn score(&self) -> f64 {
        self.log_prob / self.tokens.len().max(1) as f64
    }
}

/// Walkers that go on together, one pass for each token.
pub(super) struct Walkers<'a> {
    pub(super) active: Vec<Walker>,
    pub(super) ending: Ending,
    /// Whether the last token of a walk is run, so that its branch can go on.
    pub(super) run_last: bool,
    /// Judges answers; without one their score is the mean log-probability.
    pub(super) scorer: Option<&'a dyn Scorer>,
}

/// What walkers ask of the tree.
struct Drawn {
    growth: Vec<Growth>,
    /// Of each growth.
    select: Vec<Select>,
    /// The growth that each walker needs.
    targets: Vec<Option<usize>>,
}

impl Walkers<'_> {
    /// One token more for every walker. Those that are through, in order, with what they have so far.
    ///
    /// Walkers that draw the same token in the same branch stay together and it is run once. Branches that
    /// nobody goes on from are released, unless they are held or a walk ended there that may go on.
    pub(super) fn round(
        &mut self,
        tree: &mut SearchTree<'_>,
    ) -> Result<Vec<(Walker, Answer)>, SearchError> {
        let before: BTreeSet<BranchId> = self.active.iter().map(|walker| walker.branch).collect();
        let Drawn { growth, select, targets } = self.draw(tree)?;
        let mut through = Vec::new();
        let mut going = Vec::new();
        for (walker, target) in std::mem::take(&mut self.active).into_iter().zip(targets) {
            match target {
                Some(target) => going.push((walker, target)),
                None => through.push(self.complete(tree, walker)),
            }
        }
        let needed: BTreeSet<BranchId> = growth.iter().map(|one| one.branch).collect();
        for &branch in before.difference(&needed) {
            release_idle(tree, branch)?;
        }
        let grown = tree.advance_select(&growth, &select)?;
        for (mut walker, target) in going {
            match grown[target] {
                Some(branch) => walker.branch = branch,
                None => walker.interrupt(),
            }
            if walker.finish.is_some() {
                through.push(self.complete(tree, walker));
            } else {
                self.active.push(walker);
            }
        }
        for (one, grown) in growth.iter().zip(&grown) {
            if grown.is_none() && !self.active.iter().any(|walker| walker.branch == one.branch) {
                release_idle(tree, one.branch)?;
            }
        }
        Ok(through)
    }

    /// Every walker draws.
    fn draw(&mut self, tree: &SearchTree<'_>) -> Result<Drawn, SearchError> {
        let mut choices = BTreeMap::new();
        let mut meeting = BTreeMap::<(BranchId, u32), usize>::new();
        let mut drawn = Drawn { growth: Vec::new(), select: Vec::new(), targets: Vec::new() };
        for walker in &mut self.active {
            let branch = walker.branch;
            let token = walker.draw(tree, &mut choices, &self.ending)?;
            let runs = walker.finish.is_none() || self.run_last && walker.may_go_on(tree);
            drawn.targets.push(runs.then(|| {
                let select = walker.select(tree);
                match meeting.entry((branch, token)) {
                    Entry::Occupied(met) => {
                        let met = *met.get();
                        let both = std::mem::replace(&mut drawn.select[met], Select::Logits);
                        drawn.select[met] = join(both, select);
                        met
                    }
                    Entry::Vacant(place) => {
                        drawn.growth.push(Growth { branch, token, score: walker.score() });
                        drawn.select.push(select);
                        *place.insert(drawn.growth.len() - 1)
                    }
                }
            }));
        }
        Ok(drawn)
    }

    /// A walker that is through, with its answer; the observer hears of it unless it may go on.
    fn complete(&self, tree: &mut SearchTree<'_>, walker: Walker) -> (Walker, Answer) {
        let text = tree.codec().decode(&walker.tokens);
        let text = if self.run_last { &text } else { self.ending.trim(&text) };
        let mut answer = Answer {
            text: text.to_owned(),
            tokens: walker.tokens.clone(),
            log_prob: walker.log_prob,
            score: 0.0,
            solved: false,
            finish: walker.finish.unwrap_or(Finish::Interrupted),
        };
        answer.score = answer.mean_log_prob();
        let goes_on = self.run_last && walker.may_go_on(tree);
        if let Some(scorer) = self.scorer {
            answer.judge(scorer, !goes_on && answer.finish != Finish::Interrupted);
        }
        if !goes_on {
            tree.announce(walker.branch, &answer);
        }
        (walker, answer)
    }
}

/// Releases a branch that is still there and not held.
fn release_idle(tree: &mut SearchTree<'_>, branch: BranchId) -> Result<(), SearchError> {
    match tree.branch(branch) {
        Ok(record) if !record.held => tree.release(branch, PruneReason::Done),
        _ => Ok(()),
    }
}
