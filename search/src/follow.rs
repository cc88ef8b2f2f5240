//! A drafted tree in one pass.

use super::advance::check_select;
use super::branch::{Asked, Row};
use super::error::is_out_of_pages;
use super::{BranchId, Event, Growth, SearchError, SearchTree};
use deft_engine::{DraftToken, Select};

impl SearchTree<'_> {
    /// As [`SearchTree::follow_select`], with all logits of each token.
    ///
    /// # Errors
    /// As there.
    pub fn follow(
        &mut self,
        branch: BranchId,
        draft: &[DraftToken],
        choose: &mut dyn FnMut(&Row) -> Option<u32>,
    ) -> Result<Option<u32>, SearchError> {
        self.follow_select(branch, draft, &vec![Select::Logits; draft.len()], choose)
    }

    /// Runs `draft` below `branch` in one pass, asks the model `select`, a request for each of its tokens, and keeps
    /// the path that `choose` takes through it.
    ///
    /// `draft[0]` is the token that comes next in any case; it is the parent of the rest. `choose` gets the
    /// answer after it and says which token follows, or `None` to end; while the draft has that token as a
    /// child the path goes on. Returns the first choice that was not drafted, which was not run. Without
    /// room for the draft `draft[0]` is run alone. `None` also once [`SearchTree::stop`] says why.
    ///
    /// # Errors
    /// [`SearchError::Argument`] if a token but the first has no parent, or other than a request for each; else
    /// as [`SearchTree::advance`].
    pub fn follow_select(
        &mut self,
        branch: BranchId,
        draft: &[DraftToken],
        select: &[Select],
        choose: &mut dyn FnMut(&Row) -> Option<u32>,
    ) -> Result<Option<u32>, SearchError> {
        SearchError::at_least_one("draft tokens", draft.len())?;
        check_select(draft.len(), select)?;
        if let Some(index) = (1..draft.len()).find(|&index| draft[index].parent.is_none()) {
            return Err(SearchError::Argument {
                name: "draft's parent",
                value: format!("none at index {index}"),
                limit: "an earlier index for all tokens but the first",
            });
        }
        if self.branch(branch)?.held {
            return Err(SearchError::Argument {
                name: "branch",
                value: format!("{branch}, which is held"),
                limit: "one that grows",
            });
        }
        if self.is_over() {
            return Ok(None);
        }
        let left = usize::try_from(self.tokens_left()).unwrap_or(usize::MAX);
        let run = draft.len().min(left);
        let (draft, select) = (&draft[..run], &select[..run]);
        let nodes_left = self.limits.nodes.saturating_sub(self.nodes());
        if draft.len() > 1 && draft.len() <= nodes_left {
            let node = self.branch(branch)?.node;
            match self.model.verify_select(node, draft, select) {
                Ok((keys, selected)) => {
                    let rows = select.iter().cloned().zip(selected).map(Some).collect();
                    return self.keep_path(branch, draft, (&keys, rows), choose);
                }
                Err(error) if is_out_of_pages(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.follow_one(branch, draft[0].token, &select[..1], choose)
    }

    fn follow_one(
        &mut self,
        branch: BranchId,
        token: u32,
        select: &[Select],
        choose: &mut dyn FnMut(&Row) -> Option<u32>,
    ) -> Result<Option<u32>, SearchError> {
        let score = self.branch(branch)?.score;
        let grown = self.advance_select(&[Growth { branch, token, score }], select)?;
        match grown[0] {
            Some(branch) => Ok(choose(&self.branch(branch)?.row)),
            None => Ok(None),
        }
    }

    /// Accepts the chosen path of a draft that was run.
    fn keep_path(
        &mut self,
        branch: BranchId,
        draft: &[DraftToken],
        (keys, mut rows): (&[deft::NodeKey], Vec<Option<Asked>>),
        choose: &mut dyn FnMut(&Row) -> Option<u32>,
    ) -> Result<Option<u32>, SearchError> {
        self.stepped(draft.len());
        let mut path = vec![0];
        let mut next;
        loop {
            let last = path[path.len() - 1];
            let row = rows[last].take().expect("a path has a token once");
            let row = Row::after(branch, row)?;
            let record = self.branch_mut(branch)?;
            let token = draft[last].token;
            record.row.check(token)?;
            let log_prob = record.row.log_prob(token);
            record.tokens.push(token);
            record.log_prob += log_prob;
            record.row = row.clone();
            self.emit(&Event::Token { branch, token, log_prob });
            next = choose(&row);
            let child = (last + 1..draft.len()).find(|&index| {
                draft[index].parent == Some(last as u32) && Some(draft[index].token) == next
            });
            match child {
                Some(child) => path.push(child),
                None => break,
            }
        }
        let path: Vec<deft::NodeKey> = path.into_iter().map(|index| keys[index]).collect();
        let node = self.branch(branch)?.node;
        self.model.accept(node, &path)?;
        Ok(next)
    }
}
