//! Beams as nodes: each forks where two of its continuations go on.

use super::super::answer::rank;
use super::super::{Answer, BranchId, Growth, PruneReason, SearchError, SearchTree};
use super::{BeamSearch, Beams, Candidate, best};
use deft_engine::Select;

/// The branches of a step, which are as long as each other.
struct Branches {
    ids: Vec<BranchId>,
    tokens: Vec<Vec<u32>>,
}

impl Branches {
    fn of(tree: &SearchTree<'_>, ids: Vec<BranchId>) -> Result<Self, SearchError> {
        let tokens = ids.iter().map(|&id| Ok(tree.branch(id)?.tokens().to_vec()));
        let tokens = tokens.collect::<Result<_, SearchError>>()?;
        Ok(Self { ids, tokens })
    }
}

impl Beams for Branches {
    fn length(&self) -> usize {
        self.tokens.first().map_or(0, Vec::len)
    }

    fn tokens(&self, beam: usize) -> Vec<u32> {
        self.tokens[beam].clone()
    }

    fn branch(&self, beam: usize) -> BranchId {
        self.ids[beam]
    }
}

impl BeamSearch {
    pub(super) fn search_nodes(
        &self,
        tree: &mut SearchTree<'_>,
    ) -> Result<Vec<Answer>, SearchError> {
        let select = Select::Top { k: self.looked_at().min(tree.model().vocabulary()) };
        let mut beams = Branches::of(tree, vec![tree.root()])?;
        let mut answers = Vec::<Answer>::new();
        while !beams.ids.is_empty() {
            let candidates = self.candidates(tree, &beams)?;
            let going = self.divide(tree, &candidates, &beams, &mut answers);
            for (beam, &id) in beams.ids.iter().enumerate() {
                if going.iter().all(|one| one.beam != beam) {
                    tree.release(id, PruneReason::Lost)?;
                }
            }
            if going.is_empty() || self.is_decided(tree, &going, &answers) {
                break;
            }
            let growth = going.iter().map(|one| Growth {
                branch: beams.ids[one.beam],
                token: one.token,
                score: one.log_prob,
            });
            let growth: Vec<Growth> = growth.collect();
            let grown = tree.advance_select(&growth, &vec![select.clone(); growth.len()])?;
            beams = Branches::of(tree, grown.into_iter().flatten().collect())?;
            if tree.stop().is_some() {
                self.interrupt_all(tree, &mut answers);
                break;
            }
        }
        Ok(answers)
    }

    /// The `2 width` most likely continuations by a token, best first.
    fn candidates(
        &self,
        tree: &SearchTree<'_>,
        beams: &Branches,
    ) -> Result<Vec<Candidate>, SearchError> {
        let count = self.looked_at();
        let mut candidates = Vec::new();
        for (beam, &id) in beams.ids.iter().enumerate() {
            let branch = tree.branch(id)?;
            for (token, log_prob) in branch.row().top(count) {
                let log_prob = branch.log_prob() + log_prob;
                candidates.push(Candidate { beam, token, log_prob });
            }
        }
        best(&mut candidates, count);
        Ok(candidates)
    }

    /// Takes what beams have as answers.
    fn interrupt_all(&self, tree: &mut SearchTree<'_>, answers: &mut Vec<Answer>) {
        let beams = tree.branches();
        let beams = beams.map(|(id, branch)| (id, branch.tokens().to_vec(), branch.log_prob()));
        for beam in beams.collect::<Vec<_>>() {
            self.interrupt(tree, beam, answers);
        }
        rank(answers);
    }
}
