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
    /// Times to start from the prompt, each with other random numbers, until an answer is right or tokens
    /// run out.
    pub rounds: usize,
    /// Thought `j` after the state at path `p` has the random numbers of path `p + [j]`; the path of the
    /// prompt is `[round]`.
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
        SearchError::at_least_one("rounds", self.rounds)?;
        SearchError::at_least_one("thought.tokens", self.thought.tokens)?;
        self.sampler.check()?;
        let root = tree.root();
        if self.rounds > 1 {
            tree.hold(root)?;
        }
        let mut answers = Vec::new();
        for round in 0..self.rounds as u32 {
            self.round(tree, (root, vec![round]), &mut answers)?;
            if is_solved(&answers) || tree.stop().is_some() {
                break;
            }
        }
        rank(&mut answers);
        Ok(answers)
    }
}

fn is_solved(answers: &[Answer]) -> bool {
    answers.iter().any(|answer| answer.solved)
}

impl TreeOfThoughts<'_> {
    /// All levels, from the prompt on.
    fn round(
        &self,
        tree: &mut SearchTree<'_>,
        start: (BranchId, Vec<u32>),
        answers: &mut Vec<Answer>,
    ) -> Result<(), SearchError> {
        let mut places = vec![start];
        let mut states = Vec::new();
        for _ in 0..self.depth {
            states = self.expand(tree, &places, answers)?;
            if is_solved(answers) || tree.stop().is_some() {
                break;
            }
            self.select(tree, &mut states)?;
            let place = |state: &State| (state.branch, state.path.clone());
            places = states.iter().map(place).collect();
            if places.is_empty() {
                break;
            }
        }
        for state in states {
            tree.announce(state.branch, &state.answer);
            tree.release(state.branch, PruneReason::Done)?;
            answers.push(state.answer);
        }
        Ok(())
    }

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
                walkers.active.push(Walker::new(tree, *branch, self.sampler, stream)?);
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
                    states.push(State { branch, path, answer });
                }
            }
            if is_solved(answers) {
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
        let alive = states.iter().filter(|state| state.answer.score > f64::NEG_INFINITY);
        let kept = alive.count().min(self.keep);
        for lost in states.drain(kept..) {
            tree.release(lost.branch, PruneReason::Lost)?;
        }
        Ok(())
    }
}
