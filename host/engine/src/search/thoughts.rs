//! Tree of thoughts, breadth first (arXiv 2305.10601).

use super::answer::rank;
use super::walkers::{Walker, Walkers};
use super::{
    Answer, BranchId, Ending, Finish, PruneReason, Sampler, Scorer, SearchError, SearchMethod,
    SearchTree,
};

/// Samples several thoughts after every state, keeps the best states, and goes on from them.
///
/// A thought is a run of tokens up to a stop text. Equal thoughts after one state are one state.
#[derive(Clone)]
pub struct TreeOfThoughts<'a> {
    /// Thoughts to sample after every state.
    pub thoughts: usize,
    /// States that go on to the next level.
    pub keep: usize,
    /// Levels.
    pub depth: usize,
    /// How tokens are drawn.
    pub sampler: Sampler,
    /// When a thought is complete. An end token completes the answer.
    pub thought: Ending,
    /// Thought `j` after the state at path `p` has the random numbers of path `p + [j]`.
    pub seed: u64,
    /// Judges states. The search ends with the first one that is right.
    pub scorer: &'a dyn Scorer,
}

/// A state that goes on.
struct State {
    branch: BranchId,
    path: Vec<u32>,
    answer: Answer,
}

impl SearchMethod for TreeOfThoughts<'_> {
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        SearchError::at_least_one("thoughts", self.thoughts)?;
        SearchError::at_least_one("keep", self.keep)?;
        SearchError::at_least_one("depth", self.depth)?;
        SearchError::at_least_one("thought.tokens", self.thought.tokens)?;
        self.sampler.check()?;
        let mut answers = Vec::new();
        let mut places = vec![(tree.root(), Vec::new())];
        let mut states = Vec::new();
        for _ in 0..self.depth {
            states = self.expand(tree, &places, &mut answers)?;
            if answers.iter().any(|answer| answer.solved) || tree.stop().is_some() {
                break;
            }
            self.select(tree, &mut states)?;
            places = states
                .iter()
                .map(|state| (state.branch, state.path.clone()))
                .collect();
            if places.is_empty() {
                break;
            }
        }
        for state in states {
            tree.announce(state.branch, &state.answer);
            answers.push(state.answer);
        }
        rank(&mut answers);
        Ok(answers)
    }
}

impl TreeOfThoughts<'_> {
    /// Samples the next level; complete answers go to `answers`.
    fn expand(
        &self,
        tree: &mut SearchTree<'_>,
        places: &[(BranchId, Vec<u32>)],
        answers: &mut Vec<Answer>,
    ) -> Result<Vec<State>, SearchError> {
        let mut walkers = Walkers {
            active: Vec::new(),
            ending: self.thought.clone(),
            run_last: true,
            scorer: Some(self.scorer),
        };
        for (branch, path) in places {
            for thought in 0..self.thoughts as u32 {
                let path = path.iter().copied().chain([thought]).collect();
                let stream = (self.seed, path);
                walkers
                    .active
                    .push(Walker::new(tree, *branch, self.sampler, stream)?);
            }
        }
        let mut states = Vec::<State>::new();
        while !walkers.active.is_empty() {
            for (walker, answer) in walkers.round(tree)? {
                let (branch, path) = (walker.branch, walker.path);
                let thought = matches!(answer.finish, Finish::StopText | Finish::Length);
                let ended = !thought || answer.tokens.len() >= tree.longest_answer();
                if ended || answer.solved {
                    if !answers.iter().any(|other| other.tokens == answer.tokens) {
                        answers.push(answer);
                    }
                } else if !states.iter().any(|state| state.branch == branch) {
                    states.push(State {
                        branch,
                        path,
                        answer,
                    });
                }
            }
            if answers.iter().any(|answer| answer.solved) {
                break;
            }
        }
        // Without pages a state may have gone while others were still growing.
        states.retain(|state| tree.branch(state.branch).is_ok());
        states.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(states)
    }

    /// Keeps the best states.
    fn select(
        &self,
        tree: &mut SearchTree<'_>,
        states: &mut Vec<State>,
    ) -> Result<(), SearchError> {
        for state in &*states {
            tree.set_score(state.branch, state.answer.score)?;
        }
        states.sort_by(|a, b| b.answer.score.total_cmp(&a.answer.score));
        let alive = states
            .iter()
            .filter(|state| state.answer.score > f64::NEG_INFINITY);
        let kept = alive.count().min(self.keep);
        for lost in states.drain(kept..) {
            tree.release(lost.branch, PruneReason::Lost)?;
        }
        Ok(())
    }
}
