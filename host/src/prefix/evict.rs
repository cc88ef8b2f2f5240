//! Who stays: pins, recency, and room for others.

use std::collections::BTreeMap;

use super::records::Record;
use super::{PrefixError, PrefixIndex};
use crate::tree::{NodeKey, TokenForest};

/// Indexed nodes without indexed children, the one used least recently first.
#[derive(Debug, Default)]
pub(super) struct Recency {
    clock: u64,
    leaves: BTreeMap<u64, NodeKey>,
}

impl Recency {
    pub(super) fn assert_holds(&self, node: NodeKey, record: &Record) {
        let listed = self.leaves.get(&record.used) == Some(&node);
        assert_eq!(listed, record.children.is_empty(), "{node:?}");
    }
}

impl PrefixIndex {
    /// Keeps `node`, and with it everything above, until as many [`PrefixIndex::unpin`].
    ///
    /// # Errors
    /// [`PrefixError::NotIndexed`].
    pub fn pin(&mut self, node: NodeKey) -> Result<(), PrefixError> {
        self.record(node)?;
        self.hold(node);
        self.touch(node);
        Ok(())
    }

    /// Takes a pin away.
    ///
    /// # Errors
    /// [`PrefixError::NotIndexed`], or [`PrefixError::NotPinned`].
    pub fn unpin(&mut self, node: NodeKey) -> Result<(), PrefixError> {
        if self.record(node)?.pins == 0 {
            return Err(PrefixError::NotPinned { node });
        }
        self.let_go(node);
        Ok(())
    }

    /// Evicts nodes until the pool has `pages` pages [ready](crate::cache::PagePool::ready), or nothing is left to evict, or nothing at all for more pages
    /// than there are; the pages that are ready.
    ///
    /// # Errors
    /// None that a forest whose indexed nodes were left alone has.
    pub fn make_room(&mut self, forest: &mut TokenForest, pages: u32) -> Result<u32, PrefixError> {
        if pages <= forest.pool().capacity() {
            self.evict(forest, |_, forest| forest.pool().ready() >= pages)?;
        }
        Ok(forest.pool().ready())
    }

    /// Evicts `node`, and what is above it, as far as nobody uses it: no pin, and nothing below.
    ///
    /// # Errors
    /// As [`PrefixIndex::make_room`].
    pub(crate) fn evict_path(
        &mut self,
        forest: &mut TokenForest,
        node: NodeKey,
    ) -> Result<(), PrefixError> {
        let mut next = Some(node);
        while let Some(node) = next {
            if forest.children(node)?.next().is_some() || self.record(node)?.pins > 0 {
                return Ok(());
            }
            next = forest.parent(node)?;
            self.forget(forest, node)?;
            forest.prune(node)?;
            self.stats.evictions += 1;
        }
        Ok(())
    }

    /// Evicts every node that nobody uses.
    ///
    /// # Errors
    /// As [`PrefixIndex::make_room`].
    pub fn clear(&mut self, forest: &mut TokenForest) -> Result<(), PrefixError> {
        self.evict(forest, |_, _| false)
    }

    /// Removes `node` and all below it from the forest, and the indexed of them from the index; the pages that came
    /// free.
    ///
    /// # Errors
    /// [`PrefixError::Pinned`] if a node of them is pinned; the forest's for a node that is not there.
    pub fn prune(&mut self, forest: &mut TokenForest, node: NodeKey) -> Result<u32, PrefixError> {
        self.check_unpinned(node)?;
        for &node in self.records.subtree(node).iter().rev() {
            self.forget(forest, node)?;
        }
        Ok(forest.prune(node)?)
    }

    /// Whether `node`, or an indexed node below it, may leave the index.
    ///
    /// # Errors
    /// [`PrefixError::Pinned`] if one is pinned.
    pub(crate) fn check_unpinned(&self, node: NodeKey) -> Result<(), PrefixError> {
        let subtree = self.records.subtree(node);
        let pinned = |&node: &NodeKey| self.records.get(node).is_some_and(|record| record.pins > 0);
        match subtree.into_iter().find(pinned) {
            Some(node) => Err(PrefixError::Pinned { node }),
            None => Ok(()),
        }
    }

    /// Takes `node` and all below it out of the index, if they are in it. Those below that nobody uses go from the
    /// forest too.
    ///
    /// # Errors
    /// [`PrefixError::Pinned`] if one is pinned.
    pub(crate) fn release(
        &mut self,
        forest: &mut TokenForest,
        node: NodeKey,
    ) -> Result<(), PrefixError> {
        self.check_unpinned(node)?;
        for below in self.records.subtree(node).into_iter().rev() {
            self.forget(forest, below)?;
            if below != node && forest.children(below)?.next().is_none() {
                forest.prune(below)?;
                self.stats.evictions += 1;
            }
        }
        Ok(())
    }

    /// Whether the index may hold `pages` pages more, once it has evicted what has to go for them.
    pub(super) fn make_budget(
        &mut self,
        forest: &mut TokenForest,
        pages: u32,
    ) -> Result<bool, PrefixError> {
        let most = self.budget_pages;
        if pages > most {
            return Ok(false);
        }
        let fits = |index: &Self| index.stats.pages <= most - pages;
        self.evict(forest, |index, _| fits(index))?;
        Ok(fits(self))
    }

    /// Evicts, from the node used least recently on, until `done`. A parent is used later than its children, so it is
    /// met after them.
    fn evict(
        &mut self,
        forest: &mut TokenForest,
        done: impl Fn(&Self, &TokenForest) -> bool,
    ) -> Result<(), PrefixError> {
        let mut from = 0;
        while !done(self, forest) {
            let Some((&used, &node)) = self.recency.leaves.range(from..).next() else {
                return Ok(());
            };
            from = used + 1;
            let in_use = forest.children(node)?.next().is_some();
            if !in_use && self.record(node)?.pins == 0 {
                self.forget(forest, node)?;
                forest.prune(node)?;
                self.stats.evictions += 1;
            }
        }
        Ok(())
    }

    /// Takes `node`, which has no indexed children, out of the index.
    fn forget(&mut self, forest: &TokenForest, node: NodeKey) -> Result<(), PrefixError> {
        let pages = forest.pages(node)?.len() as u32;
        let Some(record) = self.records.remove(node) else {
            return Ok(());
        };
        self.recency.leaves.remove(&record.used);
        self.stats.pages -= pages;
        if let Some(parent) = record.parent {
            self.list(parent);
        }
        Ok(())
    }

    /// Notes that `node` and all above it are used now.
    pub(super) fn touch(&mut self, node: NodeKey) {
        self.touch_all(Some(node));
    }

    pub(super) fn touch_all(&mut self, mut next: Option<NodeKey>) {
        while let Some(node) = next {
            let Some(record) = self.records.get_mut(node) else {
                return;
            };
            self.recency.leaves.remove(&record.used);
            self.recency.clock += 1;
            record.used = self.recency.clock;
            next = record.parent;
            self.list(node);
        }
    }

    /// Lists `node` among those that may be evicted if it has no indexed children.
    fn list(&mut self, node: NodeKey) {
        let record = self.records.get(node);
        if let Some(record) = record.filter(|record| record.children.is_empty()) {
            self.recency.leaves.insert(record.used, node);
        }
    }

    pub(super) fn hold(&mut self, node: NodeKey) {
        if let Some(record) = self.records.get_mut(node) {
            record.pins += 1;
        }
    }

    pub(super) fn let_go(&mut self, node: NodeKey) {
        if let Some(record) = self.records.get_mut(node) {
            record.pins -= 1;
        }
    }
}
