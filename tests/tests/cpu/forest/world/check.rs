//! What has to be true after every operation.

use std::collections::{BTreeMap, BTreeSet};

use deft::cache::PageId;
use deft::tree::{NodeKey, Run, TreeView};
use kernels_gpu::abi::APPEND_LIVE;
use proptest::sample::Index;

use super::{Mirror, World};
use crate::forest::model::PAGE;

impl World {
    pub(super) fn check_live_targets(&self, leaves: &[NodeKey]) {
        let (mut live, mut last) = (Vec::new(), Vec::new());
        self.forest.live_targets(leaves, &mut live).unwrap();
        for &leaf in leaves {
            let length = self.forest.length(leaf).unwrap();
            self.forest.append_targets(leaf, length - 1..length, &mut last).unwrap();
        }
        let resolve = |target: u32| {
            assert_ne!(target & APPEND_LIVE, 0);
            let slot = (target ^ APPEND_LIVE) as usize;
            self.forest.tail_pages()[slot] * 64 + (self.forest.lengths()[slot] - 1) % 64
        };
        let resolved: Vec<_> = live.into_iter().map(resolve).collect();
        assert_eq!(resolved, last);
    }

    /// Everything that a caller can see of the forest.
    pub(super) fn observe(&self) -> (Vec<u32>, Vec<u32>, u32, Option<TreeView>) {
        let keys: Vec<_> = self.model.alive().iter().map(|&i| self.model.nodes[i].key).collect();
        (
            self.forest.lengths().to_vec(),
            self.forest.tail_pages().to_vec(),
            self.forest.pool().free(),
            self.forest.view(&keys).ok(),
        )
    }

    /// Compares counters, links and views with the model; `picks` are nodes to query, in this order.
    pub(crate) fn check(&mut self, picks: &[Index]) {
        self.forest.debug_assert_invariants();
        let alive = self.model.alive();
        assert_eq!(self.forest.node_count(), alive.len());
        assert_eq!(self.forest.pool().free() as usize, self.free_pages());
        for &node in &alive {
            self.check_node(node);
        }
        let roots = alive.iter().filter(|&&node| self.model.root(node) == node);
        let mut leaves = Vec::new();
        for &root in roots {
            let key = self.model.nodes[root].key;
            leaves.extend(self.forest.leaves(key).unwrap());
        }
        self.check_mirror();
        if alive.is_empty() {
            return;
        }
        let mut order: Vec<u32> = self.check_view(&leaves);
        assert!(order.is_sorted(), "leaves in depth-first order keep it");
        let mut nodes: Vec<usize> = picks.iter().map(|i| alive[i.index(alive.len())]).collect();
        let mut met = BTreeSet::new();
        nodes.retain(|&node| met.insert(node));
        if !nodes.is_empty() {
            let keys: Vec<_> = nodes.iter().map(|&i| self.model.nodes[i].key).collect();
            order = self.check_view(&keys);
            order.sort_unstable();
            assert!(order.into_iter().eq(0..keys.len() as u32));
        }
        if self.mirror.is_none() {
            self.mirror = Some(self.mirror_of(leaves));
        }
    }

    pub(crate) fn tear_down(mut self) {
        for root in self.forest.roots().collect::<Vec<_>>() {
            self.forest.remove_tree(root).unwrap();
        }
        self.forest.debug_assert_invariants();
        assert_eq!(self.forest.pool().live(), 0);
        assert_eq!(self.forest.node_count(), 0);
    }

    fn check_node(&self, node: usize) {
        let record = &self.model.nodes[node];
        let key = record.key;
        let forest = &self.forest;
        assert_eq!(forest.length(key), Ok(record.tokens.len() as u32));
        let context = self.model.visible_at(record).len() as u64;
        assert_eq!(forest.context_length(key), Ok(context));
        let children: Vec<_> = self.keys(&self.model.children(node));
        assert!(forest.children(key).unwrap().eq(children));
        let parent = record.parent.map(|parent| self.model.nodes[parent].key);
        assert_eq!(forest.parent(key), Ok(parent));
        assert_eq!(forest.is_draft(key), Ok(record.draft.is_some()));
        assert_eq!(forest.is_sealed(key), Ok(record.sealed));
    }

    fn keys(&self, nodes: &[usize]) -> Vec<NodeKey> {
        nodes.iter().map(|&i| self.model.nodes[i].key).collect()
    }

    /// Views `queries` and reads every query's tokens from the store; the view's query order.
    fn check_view(&mut self, queries: &[NodeKey]) -> Vec<u32> {
        self.forest.view_into(queries, &mut self.scratch, &mut self.view).unwrap();
        assert_eq!(self.view.queries as usize, queries.len());
        assert_eq!(self.view.query_order.len(), queries.len());
        check_shape(&self.view);
        for (query, &index) in (0..).zip(&self.view.query_order) {
            let key = queries[index as usize];
            let node = self.model.find(key);
            assert_eq!(self.read(query), self.model.visible_at(node), "query {query}");
            if let Some((block, _)) = node.draft {
                self.check_block(query, block);
            }
        }
        let mut slots = BTreeSet::new();
        for run in &self.view.runs {
            if let Some(slot) = run.length_slot {
                assert_eq!(self.forest.lengths()[slot as usize], run.tokens);
                assert!(slots.insert(slot));
            }
        }
        assert_eq!(slots, self.slots_that_grow(queries));
        self.view.query_order.clone()
    }

    /// Length slots of the nodes that `queries` see and that may still grow.
    fn slots_that_grow(&self, queries: &[NodeKey]) -> BTreeSet<u32> {
        let above = |&key: &NodeKey| {
            std::iter::successors(Some(key), |&key| self.forest.parent(key).unwrap())
        };
        let mut nodes: BTreeSet<NodeKey> = queries.iter().flat_map(above).collect();
        nodes.retain(|&key| {
            let node = self.model.find(key);
            !node.sealed && node.draft.is_none()
        });
        let slots = nodes.iter().map(|&key| self.forest.length_slot(key));
        slots.map(Result::unwrap).collect()
    }

    /// A masked run holds all of its block that is left, the rest of its last page not. Of a block that has grown it holds
    /// what some query sees.
    fn check_block(&self, query: u32, block: usize) {
        let of_query = |run: &&Run| run.mask.is_some() && run.queries.contains(&query);
        let run = self.view.runs.iter().find(of_query).unwrap();
        if self.model.has_grown(block) {
            for page in 0..run.pages.len() {
                let masks =
                    run.queries.clone().filter_map(|query| mask(&self.view, run, page, query));
                assert!(masks.fold(0, |all, bits| all | bits) != 0, "nobody sees page {page}");
            }
            return;
        }
        assert_eq!(run.tokens as usize, self.model.block_tokens(block));
    }

    /// Tokens that the view shows to `query`.
    fn read(&self, query: u32) -> Vec<u64> {
        let mut tokens = Vec::new();
        for run in &self.view.runs {
            if !run.queries.contains(&query) {
                continue;
            }
            for (page_index, page) in self.view.pages[range(&run.pages)].iter().enumerate() {
                let held = (run.tokens as usize - page_index * PAGE).min(PAGE);
                let bits = mask(&self.view, run, page_index, query);
                assert_eq!(bits.unwrap_or(0) & !(u64::MAX >> (PAGE - held)), 0);
                let places = (0..held).filter(|&t| bits.is_none_or(|bits| bits >> t & 1 == 1));
                tokens.extend(places.map(|t| self.store[*page as usize * PAGE + t]));
            }
        }
        tokens
    }

    fn mirror_of(&self, queries: Vec<NodeKey>) -> Mirror {
        Mirror {
            cursor: self.forest.growth_cursor(),
            pages: pages_by_slot(&self.forest.view(&queries).unwrap()),
            queries,
        }
    }

    /// An old view and the growth since have to give the new view; a new shape gives a new mirror.
    fn check_mirror(&mut self) {
        let Some(mirror) = &mut self.mirror else {
            return;
        };
        let Some(growth) = self.forest.growth_since(mirror.cursor) else {
            assert_ne!(self.forest.growth_cursor(), mirror.cursor);
            self.mirror = None;
            return;
        };
        for entry in growth {
            if let Some(pages) = mirror.pages.get_mut(&entry.length_slot) {
                pages.push(entry.page);
            }
        }
        mirror.cursor = self.forest.growth_cursor();
        let view = self.forest.view(&mirror.queries).unwrap();
        assert_eq!(mirror.pages, pages_by_slot(&view));
    }
}

fn range(range: &std::ops::Range<u32>) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}

fn mask(view: &TreeView, run: &Run, page: usize, query: u32) -> Option<u64> {
    let row = run.mask? as usize + page * run.queries.len();
    Some(view.masks[row + (query - run.queries.start) as usize])
}

fn pages_by_slot(view: &TreeView) -> BTreeMap<u32, Vec<PageId>> {
    let growing = view.runs.iter().filter_map(|run| {
        let pages = view.pages[range(&run.pages)].to_vec();
        Some((run.length_slot?, pages))
    });
    growing.collect()
}

/// What [`TreeView`] promises of its own form.
fn check_shape(view: &TreeView) {
    let mut ends: Vec<u32> = Vec::new();
    for (index, run) in view.runs.iter().enumerate() {
        assert!(!run.queries.is_empty(), "a run is seen by some query");
        assert_eq!(run.pages.len(), (run.tokens as usize).div_ceil(PAGE));
        assert!(run.length_slot.is_none() || run.mask.is_none());
        // Siblings in order: a run begins no earlier than the sibling before it ended.
        let parent = run.parent.map(|parent| parent as usize);
        assert!(parent.is_none_or(|parent| parent < index));
        let above = parent.map_or(0..view.queries, |parent| view.runs[parent].queries.clone());
        assert!(above.start <= run.queries.start && run.queries.end <= above.end);
        let before = view.runs[..index].iter().rev();
        let sibling = before.clone().find(|other| other.parent == run.parent);
        assert!(sibling.is_none_or(|other| other.queries.end <= run.queries.start));
        // Subtrees contiguous: the parent is the run before, or above it.
        ends.truncate(parent.map_or(0, |parent| {
            let depth = ends.iter().position(|&open| open as usize == parent);
            depth.expect("the parent's subtree is still open") + 1
        }));
        ends.push(index as u32);
    }
}
