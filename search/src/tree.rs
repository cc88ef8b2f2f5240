//! The tree that a search grows, and its nodes in the model.

use std::collections::BTreeMap;
use std::time::Instant;

use deft::NodeKey;

use super::branch::{Branch, BranchId, Row};
use super::{
    Answer, Cancel, Event, Limits, Observer, PruneReason, SearchError, Stats, Stop, TextCodec,
};
use deft_engine::{Select, Selected, Traffic, TreeModel};

/// A tree below one prompt: its branches, what they hold in the model, and what may still be spent.
///
/// Search methods work on this. Whatever happens, dropping it frees all its nodes.
pub struct SearchTree<'a> {
    pub(super) model: &'a mut dyn TreeModel,
    codec: &'a dyn TextCodec,
    observer: Option<&'a mut dyn Observer>,
    pub(super) limits: Limits,
    cancel: Cancel,
    root: NodeKey,
    root_branch: BranchId,
    prompt: Vec<u32>,
    pub(super) branches: BTreeMap<BranchId, Branch>,
    next_branch: u64,
    pub(super) stats: Stats,
    pub(super) stop: Option<Stop>,
    before: Before,
}

/// What the model held and had read before the search.
struct Before {
    nodes: usize,
    pages: u32,
    /// Tokens of prompts that did not have to be run.
    saved: u64,
    traffic: Traffic,
    time: Instant,
}

impl<'a> SearchTree<'a> {
    /// Runs the prompt.
    pub(super) fn start(
        model: &'a mut dyn TreeModel,
        codec: &'a dyn TextCodec,
        observer: Option<&'a mut dyn Observer>,
        (limits, cancel): (Limits, Cancel),
        prompt: &[u32],
    ) -> Result<Self, SearchError> {
        SearchError::at_least_one("limits.nodes", limits.nodes)?;
        let before = Before {
            nodes: own_nodes(model),
            pages: own_pages(model),
            saved: model.prefix_stats().tokens_saved,
            traffic: model.traffic(),
            time: Instant::now(),
        };
        let mut logits = Vec::new();
        let root = model.insert_prompt(prompt, &mut logits)?;
        let root_branch = BranchId(0);
        let mut tree = Self {
            model,
            codec,
            observer,
            limits,
            cancel,
            root,
            root_branch,
            prompt: prompt.to_vec(),
            branches: BTreeMap::new(),
            next_branch: 1,
            stats: Stats::default(),
            stop: None,
            before,
        };
        let branch = root_branch;
        let row = Row::after(branch, (Select::Logits, Selected::Logits(logits)))?;
        tree.branches.insert(
            branch,
            Branch { node: root, tokens: Vec::new(), log_prob: 0.0, score: 0.0, held: false, row },
        );
        tree.stats.prompt_tokens = prompt.len() as u64;
        tree.stats.prompt_tokens_saved = tree.model.prefix_stats().tokens_saved - tree.before.saved;
        tree.note_peaks();
        let root = root_branch;
        tree.emit(&Event::Started { root, prompt });
        Ok(tree)
    }

    /// The branch that ends with the prompt, until it is grown, forked or released.
    pub fn root(&self) -> BranchId {
        self.root_branch
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// What turns tokens into text.
    pub fn codec(&self) -> &'a dyn TextCodec {
        self.codec
    }

    /// The model, to look at.
    pub fn model(&self) -> &dyn TreeModel {
        self.model
    }

    /// A branch.
    ///
    /// # Errors
    /// [`SearchError::UnknownBranch`].
    pub fn branch(&self, branch: BranchId) -> Result<&Branch, SearchError> {
        let found = self.branches.get(&branch);
        found.ok_or(SearchError::UnknownBranch { branch })
    }

    /// All branches, oldest first.
    pub fn branches(&self) -> impl Iterator<Item = (BranchId, &Branch)> {
        self.branches.iter().map(|(&id, branch)| (id, branch))
    }

    /// Why no branch grows any more, if so.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// What the search took so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        let (now, then) = (self.model.traffic(), self.before.traffic);
        stats.traffic =
            Traffic { read: now.read - then.read, per_query: now.per_query - then.per_query };
        stats.elapsed = self.before.time.elapsed();
        stats
    }

    /// Tokens that the limit leaves.
    pub fn tokens_left(&self) -> u64 {
        self.limits.tokens - self.stats.tokens
    }

    /// Tokens that an answer may have: the model's context less the prompt, and one that is not run.
    pub fn longest_answer(&self) -> usize {
        (self.model.context() + 1).saturating_sub(self.prompt.len())
    }

    /// Keeps `branch` as it is, to be grown from again: whatever grows from it is a fork.
    ///
    /// # Errors
    /// [`SearchError::UnknownBranch`].
    pub fn hold(&mut self, branch: BranchId) -> Result<(), SearchError> {
        self.branch_mut(branch)?.held = true;
        Ok(())
    }

    /// Says how good `branch` is. Without pages the worst leaf goes first.
    ///
    /// # Errors
    /// [`SearchError::UnknownBranch`].
    pub fn set_score(&mut self, branch: BranchId, score: f64) -> Result<(), SearchError> {
        self.branch_mut(branch)?.score = score;
        self.emit(&Event::Scored { branch, score });
        Ok(())
    }

    /// Drops `branch`, and of its tokens those that no other branch shares.
    ///
    /// # Errors
    /// [`SearchError::UnknownBranch`], or the model's.
    pub fn release(&mut self, branch: BranchId, reason: PruneReason) -> Result<(), SearchError> {
        let node = self.branch(branch)?.node;
        self.branches.remove(&branch);
        if let Some(top) = self.unshared(node)? {
            self.model.prune(top)?;
        }
        self.emit(&Event::Pruned { branch, reason });
        Ok(())
    }

    /// Tells the observer of a complete answer that ends in `branch`.
    pub fn announce(&mut self, branch: BranchId, answer: &Answer) {
        self.emit(&Event::Finished { branch, answer });
    }

    /// The highest node that only `node` needs, which is no branch's any more; `None` if others do.
    fn unshared(&self, node: NodeKey) -> Result<Option<NodeKey>, SearchError> {
        if node == self.root || self.children(node)? > 0 {
            return Ok(None);
        }
        let mut top = node;
        while let Some(parent) = self.parent(top)? {
            if parent == self.root || self.children(parent)? > 1 || self.is_branch(parent) {
                break;
            }
            top = parent;
        }
        Ok(Some(top))
    }

    pub(super) fn is_branch(&self, node: NodeKey) -> bool {
        self.branches.values().any(|branch| branch.node == node)
    }

    pub(super) fn is_root(&self, node: NodeKey) -> bool {
        node == self.root
    }

    pub(super) fn children(&self, node: NodeKey) -> Result<usize, SearchError> {
        Ok(self.forest_result(self.model.forest().children(node))?.count())
    }

    pub(super) fn parent(&self, node: NodeKey) -> Result<Option<NodeKey>, SearchError> {
        self.forest_result(self.model.forest().parent(node))
    }

    pub(super) fn forest_result<T>(
        &self,
        result: Result<T, deft::tree::ForestError>,
    ) -> Result<T, SearchError> {
        Ok(result.map_err(|error| deft_engine::ModelError::from(deft::CacheError::from(error)))?)
    }

    pub(super) fn branch_mut(&mut self, branch: BranchId) -> Result<&mut Branch, SearchError> {
        let found = self.branches.get_mut(&branch);
        found.ok_or(SearchError::UnknownBranch { branch })
    }

    pub(super) fn new_branch(&mut self, branch: Branch) -> BranchId {
        let id = self.new_id();
        self.branches.insert(id, branch);
        id
    }

    /// The name of the next branch.
    pub(super) fn new_id(&mut self) -> BranchId {
        let id = BranchId(self.next_branch);
        self.next_branch += 1;
        id
    }

    /// Whether anybody is told of events.
    pub(super) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Whether the search may hold so many nodes only.
    pub(super) fn limits_nodes(&self) -> bool {
        self.limits.nodes != usize::MAX
    }

    /// Nodes that the search holds in the model.
    pub(super) fn nodes(&self) -> usize {
        own_nodes(self.model) - self.before.nodes
    }

    /// Whether nothing may grow any more.
    pub(super) fn is_over(&mut self) -> bool {
        if self.cancel.is_cancelled() {
            self.stop = Some(Stop::Cancelled);
        } else if self.tokens_left() == 0 {
            self.stop.get_or_insert(Stop::Budget);
        }
        self.stop.is_some()
    }

    pub(super) fn note_peaks(&mut self) {
        let pages = own_pages(self.model) - self.before.pages;
        self.stats.peak_pages = self.stats.peak_pages.max(pages);
        self.stats.peak_nodes = self.stats.peak_nodes.max(self.nodes());
    }

    pub(super) fn emit(&mut self, event: &Event<'_>) {
        if let Some(observer) = &mut self.observer {
            observer.event(event);
        }
    }
}

/// Nodes of the model but for those of prompts that it keeps.
fn own_nodes(model: &dyn TreeModel) -> usize {
    model.forest().node_count() - model.prefix_stats().nodes
}

/// Pages of the model but for those of prompts that it keeps.
fn own_pages(model: &dyn TreeModel) -> u32 {
    model.forest().pool().live() - model.prefix_stats().pages
}

impl Drop for SearchTree<'_> {
    fn drop(&mut self) {
        let pruned = self.model.prune(self.root);
        debug_assert!(pruned.is_ok() || std::thread::panicking(), "{pruned:?}");
    }
}
