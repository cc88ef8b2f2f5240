//! The tree as its search tells of it.

use std::collections::BTreeMap;

use deft_search::{Answer, Event, PruneReason};

/// What became of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It grows, or waits to.
    Alive,
    /// It goes on in its children.
    Inner,
    /// Others were better.
    Lost,
    /// It cannot become right.
    Dead,
    /// There was no page for it.
    Crowded,
    /// Its answers are complete.
    Done,
}

/// An answer that ends in a branch.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Tokens since the prompt.
    pub(crate) tokens: Vec<u32>,
    /// Tokens since the prompt that the branch had when the answer ended in it; it may have grown since.
    pub(crate) run: usize,
    /// Whether it has.
    pub(crate) outgrown: bool,
    pub(crate) score: f64,
    /// Whether it is right, where that can be told.
    pub(crate) right: Option<bool>,
    /// Whether the search chose it.
    pub(crate) best: bool,
}

/// A branch and its place.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub(crate) parent: Option<u64>,
    pub(crate) children: Vec<u64>,
    /// Its own tokens, those of its parents left out.
    pub(crate) tokens: Vec<u32>,
    pub(crate) score: Option<f64>,
    pub(crate) state: State,
    pub(crate) answers: Vec<Leaf>,
}

/// All branches that there were, by their index. Branch 0 begins right after the prompt.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) branches: BTreeMap<u64, Branch>,
}

impl Tree {
    fn add(&mut self, index: u64, parent: Option<u64>) {
        let branch = Branch {
            parent,
            children: Vec::new(),
            tokens: Vec::new(),
            score: None,
            state: State::Alive,
            answers: Vec::new(),
        };
        self.branches.insert(index, branch);
    }

    fn branch(&mut self, index: u64) -> &mut Branch {
        self.branches
            .get_mut(&index)
            .expect("a search speaks only of branches that it has announced")
    }

    /// Takes an event in; `is_right` judges answers.
    pub(crate) fn event(&mut self, event: &Event<'_>, is_right: &dyn Fn(&Answer) -> Option<bool>) {
        match *event {
            Event::Started { root, .. } => self.add(root.index(), None),
            Event::Forked { parent, children } => {
                let indices = children.iter().map(|child| child.index());
                let parent = parent.index();
                for child in indices.clone() {
                    self.add(child, Some(parent));
                }
                self.branch(parent).children.extend(indices);
                self.branch(parent).state = State::Inner;
            }
            Event::Token { branch, token, .. } => {
                let branch = self.branch(branch.index());
                branch.tokens.push(token);
                for leaf in &mut branch.answers {
                    leaf.outgrown = true;
                }
            }
            Event::Scored { branch, score } => self.branch(branch.index()).score = Some(score),
            Event::Pruned { branch, reason } => {
                let branch = self.branch(branch.index());
                let dead = branch.score == Some(f64::NEG_INFINITY);
                branch.state = match reason {
                    _ if !branch.children.is_empty() => State::Inner,
                    PruneReason::OutOfPages => State::Crowded,
                    PruneReason::Lost if dead => State::Dead,
                    PruneReason::Lost => State::Lost,
                    _ => State::Done,
                };
            }
            Event::Finished { branch, answer } => self.answer(branch.index(), answer, is_right),
            _ => {}
        }
    }

    fn answer(&mut self, index: u64, answer: &Answer, is_right: &dyn Fn(&Answer) -> Option<bool>) {
        let leaf = Leaf {
            tokens: answer.tokens.clone(),
            run: self.path(index).len(),
            outgrown: false,
            score: answer.score,
            right: is_right(answer),
            best: false,
        };
        self.branch(index).answers.push(leaf);
    }

    /// Marks the best answer, and adds it where the search has not told of it.
    pub(crate) fn conclude(
        &mut self,
        answers: &[Answer],
        is_right: &dyn Fn(&Answer) -> Option<bool>,
    ) {
        let Some(best) = answers.first() else { return };
        let told = |branch: &Branch| branch.answers.iter().any(|leaf| leaf.tokens == best.tokens);
        if !self.branches.values().any(told) {
            let ends_here = |index: &u64| self.path(*index) == best.tokens;
            let found = self.branches.keys().copied().find(ends_here);
            // A search that ended in mid-step has not run the answer's last token.
            let Some(index) = found else { return };
            self.answer(index, best, is_right);
        }
        let leaves = self.branches.values_mut();
        let mut leaves = leaves.flat_map(|branch| &mut branch.answers);
        if let Some(leaf) = leaves.find(|leaf| leaf.tokens == best.tokens) {
            leaf.best = true;
        }
    }

    /// The tokens from the prompt to the end of a branch.
    pub(crate) fn path(&self, index: u64) -> Vec<u32> {
        let mut parts = Vec::new();
        let mut next = Some(index);
        while let Some(branch) = next.and_then(|index| self.branches.get(&index)) {
            parts.push(branch.tokens.as_slice());
            next = branch.parent;
        }
        parts.into_iter().rev().flatten().copied().collect()
    }

    /// Whether a branch and all below it were given up.
    pub(crate) fn is_dropped(&self, index: u64) -> bool {
        let branch = &self.branches[&index];
        let wrong = |leaf: &Leaf| leaf.right == Some(false) && !leaf.best;
        branch.answers.iter().all(wrong)
            && match branch.state {
                State::Lost | State::Dead | State::Crowded => true,
                State::Alive => false,
                State::Inner => branch.children.iter().all(|&child| self.is_dropped(child)),
                State::Done => !branch.answers.is_empty(),
            }
    }

    /// How many branches end at or below this one.
    pub(crate) fn ends(&self, index: u64) -> usize {
        let children = &self.branches[&index].children;
        let below: usize = children.iter().map(|&child| self.ends(child)).sum();
        below.max(1)
    }
}
