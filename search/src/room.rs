//! Which growths happen where tokens, nodes or pages are short.

use deft::abi::PAGE_TOKENS;

use super::compact::SAVED_PAGES;
use super::{BranchId, Growth, PruneReason, SearchError, SearchTree, Stop};

/// A leaf that may go for want of pages.
#[derive(Clone, Copy)]
enum Leaf {
    /// An entry of the chosen growths.
    Growing(usize),
    /// A branch that does not grow now.
    Idle(BranchId),
}

impl SearchTree<'_> {
    /// Indices of the growths for which there is room, in order.
    pub(super) fn fit(&mut self, growth: &[Growth]) -> Result<Vec<usize>, SearchError> {
        for one in growth {
            self.compact(one.branch, SAVED_PAGES)?;
        }
        let mut chosen = self.fit_tokens(growth);
        self.fit_nodes(growth, &mut chosen)?;
        self.fit_pages(growth, &mut chosen)?;
        Ok(chosen)
    }

    /// Indices of the growths that the token limit allows.
    fn fit_tokens(&mut self, growth: &[Growth]) -> Vec<usize> {
        let mut chosen: Vec<usize> = (0..growth.len()).collect();
        let left = usize::try_from(self.tokens_left()).unwrap_or(usize::MAX);
        if left < chosen.len() {
            chosen.sort_by(|&a, &b| growth[b].score.total_cmp(&growth[a].score));
            chosen.truncate(left);
            chosen.sort_unstable();
            self.stop = Some(Stop::Budget);
        }
        chosen
    }

    /// Leaves out the worst growths that need a node more than the limit allows.
    fn fit_nodes(&self, growth: &[Growth], chosen: &mut Vec<usize>) -> Result<(), SearchError> {
        let room = self.limits.nodes.saturating_sub(self.nodes());
        loop {
            let mut forked = Vec::new();
            for (place, &index) in chosen.iter().enumerate() {
                if self.forks(growth, chosen, growth[index].branch)? {
                    forked.push((growth[index].score, place));
                }
            }
            let worst = forked.iter().min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            match worst {
                Some(&(_, worst)) if forked.len() > room => chosen.remove(worst),
                _ => return Ok(()),
            };
        }
    }

    /// Takes out the worst leaves of the search until there are pages for the rest.
    fn fit_pages(&mut self, growth: &[Growth], chosen: &mut Vec<usize>) -> Result<(), SearchError> {
        if self.pages_missing(growth, chosen)? {
            self.compact_all()?;
        }
        while self.pages_missing(growth, chosen)? {
            let Some(worst) = self.worst_leaf(growth, chosen)? else {
                break;
            };
            self.stats.pruned_for_pages += 1;
            let branch = match worst {
                Leaf::Idle(branch) => branch,
                Leaf::Growing(place) => growth[chosen.remove(place)].branch,
            };
            let grows = chosen.iter().any(|&index| growth[index].branch == branch);
            if !grows && !self.branch(branch)?.held {
                self.release(branch, PruneReason::OutOfPages)?;
            }
        }
        Ok(())
    }

    fn pages_missing(&mut self, growth: &[Growth], chosen: &[usize]) -> Result<bool, SearchError> {
        let mut needed = 0;
        for &index in chosen {
            let branch = growth[index].branch;
            let length = self.model.forest().length(self.branch(branch)?.node);
            let full = self.forest_result(length)?.is_multiple_of(PAGE_TOKENS);
            needed += u32::from(full || self.forks(growth, chosen, branch)?);
        }
        Ok(needed > self.model.make_room(needed)?)
    }

    /// The leaf with the lowest score, the youngest of equals; `None` if there is only one.
    fn worst_leaf(&self, growth: &[Growth], chosen: &[usize]) -> Result<Option<Leaf>, SearchError> {
        let growing = chosen.iter().enumerate();
        let growing = growing.map(|(place, &index)| (growth[index].score, Leaf::Growing(place)));
        let mut leaves: Vec<(f64, Leaf)> = growing.collect();
        for (&id, branch) in &self.branches {
            let grows = chosen.iter().any(|&index| growth[index].branch == id);
            let is_leaf = !self.is_root(branch.node) && self.children(branch.node)? == 0;
            if is_leaf && !grows && !branch.held {
                leaves.push((branch.score, Leaf::Idle(id)));
            }
        }
        let count = leaves.len();
        let worst = leaves.into_iter().rev().min_by(|a, b| a.0.total_cmp(&b.0));
        Ok(worst.filter(|_| count > 1).map(|(_, leaf)| leaf))
    }

    /// Whether `branch` has to be forked for the chosen growths.
    pub(super) fn forks(
        &self,
        growth: &[Growth],
        chosen: &[usize],
        branch: BranchId,
    ) -> Result<bool, SearchError> {
        let same = chosen.iter().filter(|&&index| growth[index].branch == branch);
        let record = self.branch(branch)?;
        let sealed = self.model.forest().is_sealed(record.node);
        Ok(record.held || self.forest_result(sealed)? || same.count() > 1)
    }
}
