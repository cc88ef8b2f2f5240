//! One more token for many branches at once.

use std::collections::BTreeMap;

use deft::NodeKey;
use deft_engine::{Select, Selected};

use super::branch::{Asked, BranchId, Row};
use super::error::is_out_of_pages;
use super::{Event, SearchError, SearchTree};

/// A token to put after a branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The branch. If it is listed more than once it is forked.
    pub branch: BranchId,
    /// The token.
    pub token: u32,
    /// How good the branch is with it; where there is not room for all, the best grow.
    pub score: f64,
}

/// Whether there is a request for each of `rows`.
pub(super) fn check_select(rows: usize, select: &[Select]) -> Result<(), SearchError> {
    if select.len() != rows {
        let value = format!("{} requests for {rows} tokens", select.len());
        return Err(SearchError::Argument { name: "select", value, limit: "a request for each" });
    }
    Ok(())
}

/// A growth that has its leaf.
struct Placed {
    /// Which of the growths asked for.
    index: usize,
    branch: BranchId,
    token: u32,
    log_prob: f64,
    score: f64,
}

impl SearchTree<'_> {
    /// As [`SearchTree::advance_select`], with all logits of each.
    ///
    /// # Errors
    /// As there.
    pub fn advance(&mut self, growth: &[Growth]) -> Result<Vec<Option<BranchId>>, SearchError> {
        self.advance_select(growth, &vec![Select::Logits; growth.len()])
    }

    /// Runs all of `growth` in one pass and asks the model `select`, a request for each; the branch that each ended in, or `None` where it did not happen.
    ///
    /// A branch that is listed once grows, one that is listed more often is replaced by children, and a held
    /// one stays and gets children. If tokens or nodes are short the best growths happen, the others leave
    /// their branch as it is. If pages are short the worst leaves of the search go, be they in `growth` or
    /// not, until the rest fits: a branch of which nothing grows then is pruned. Nothing happens once [`SearchTree::stop`] says why.
    ///
    /// # Errors
    /// [`SearchError::UnknownBranch`]; [`SearchError::Argument`] for a token that the branch's [`Row`] does not
    /// have, or other than a request for each;
    /// [`SearchError::OutOfPages`] if the last leaf does not fit; [`SearchError::Logits`]; or the model's.
    pub fn advance_select(
        &mut self,
        growth: &[Growth],
        select: &[Select],
    ) -> Result<Vec<Option<BranchId>>, SearchError> {
        check_select(growth.len(), select)?;
        let mut grown = vec![None; growth.len()];
        for one in growth {
            self.branch(one.branch)?.row.check(one.token)?;
        }
        if growth.is_empty() || self.is_over() {
            return Ok(grown);
        }
        let chosen = self.fit(growth)?;
        if chosen.is_empty() {
            return Ok(grown);
        }
        let placed = self.place(growth, &chosen)?;
        let select: Vec<Select> = placed.iter().map(|one| select[one.index].clone()).collect();
        let selected = self.step(&placed, &select)?;
        for (one, row) in placed.iter().zip(select.into_iter().zip(selected)) {
            self.record(one, row)?;
            grown[one.index] = Some(one.branch);
        }
        self.stepped(placed.len());
        Ok(grown)
    }

    /// Forks where several growths meet, and gives every growth a leaf.
    fn place(&mut self, growth: &[Growth], chosen: &[usize]) -> Result<Vec<Placed>, SearchError> {
        let mut by_branch = BTreeMap::<BranchId, Vec<usize>>::new();
        for &index in chosen {
            by_branch.entry(growth[index].branch).or_default().push(index);
        }
        let mut leaves = BTreeMap::new();
        for (&parent, indices) in &by_branch {
            let children = if self.forks(growth, chosen, parent)? {
                self.fork(parent, indices.len())?
            } else {
                vec![parent]
            };
            leaves.extend(indices.iter().copied().zip(children));
        }
        let placed = leaves.into_iter().map(|(index, branch)| {
            let Growth { token, score, .. } = growth[index];
            let log_prob = self.branch(branch)?.row.log_prob(token);
            Ok(Placed { index, branch, token, log_prob, score })
        });
        placed.collect()
    }

    /// Replaces `parent` by children that are as it is, or adds them if it is held.
    fn fork(&mut self, parent: BranchId, n: usize) -> Result<Vec<BranchId>, SearchError> {
        let mut template = self.branch(parent)?.clone();
        let nodes = self.model.fork(template.node, n)?;
        if !template.held {
            self.branches.remove(&parent);
        }
        template.held = false;
        let children = nodes.into_iter().map(|node| {
            template.node = node;
            self.new_branch(template.clone())
        });
        let children: Vec<BranchId> = children.collect();
        let children_ref = &children;
        self.emit(&Event::Forked { parent, children: children_ref });
        Ok(children)
    }

    fn step(&mut self, placed: &[Placed], select: &[Select]) -> Result<Vec<Selected>, SearchError> {
        let leaf = |one: &Placed| self.branches[&one.branch].node;
        let leaves: Vec<NodeKey> = placed.iter().map(leaf).collect();
        let tokens: Vec<u32> = placed.iter().map(|one| one.token).collect();
        let run = self.model.step_select(&leaves, &tokens, select);
        run.map_err(|source| match is_out_of_pages(&source) {
            true => SearchError::OutOfPages { source },
            false => source.into(),
        })
    }

    /// Takes over what the model says after a growth.
    fn record(&mut self, one: &Placed, row: Asked) -> Result<(), SearchError> {
        let &Placed { branch, token, log_prob, score, .. } = one;
        let row = Row::after(branch, row)?;
        let record = self.branch_mut(branch)?;
        record.tokens.push(token);
        record.log_prob += log_prob;
        record.score = score;
        record.row = row;
        self.emit(&Event::Token { branch, token, log_prob });
        Ok(())
    }

    /// Counts a pass over `tokens` new tokens.
    pub(super) fn stepped(&mut self, tokens: usize) {
        self.stats.steps += 1;
        self.stats.tokens += tokens as u64;
        self.note_peaks();
        let (leaves, tokens) = (tokens, self.stats.tokens);
        self.emit(&Event::Stepped { leaves, tokens });
    }
}
