//! What holds between any two calls.

use std::collections::{HashMap, HashSet};

use kernels_gpu::abi::{NONE, PAGE_TOKENS};

use super::node::{Content, State};
use super::{NodeKey, TokenForest};
use crate::cache::{Directory, PageId, SlabClass};

impl TokenForest {
    /// Checks links, slots, lengths, pages and reference counts against each other, where debug
    /// assertions are on.
    ///
    /// # Panics
    /// If they do not fit: a bug of this crate.
    pub fn debug_assert_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.pool.debug_assert_invariants();
        assert!(self.changes.entries() <= self.pool.capacity() as usize);
        self.assert_slots();
        self.assert_links();
        let mut references = HashMap::<PageId, u32>::new();
        for (key, node) in self.nodes.iter() {
            for page in self.assert_pages(key, &node.content) {
                *references.entry(page).or_default() += 1;
            }
            for &page in node.compacted.iter().flat_map(|compacted| &compacted.pages) {
                *references.entry(page).or_default() += 1;
            }
        }
        self.assert_directory();
        self.assert_coded();
        assert_eq!(references.len() as u32, self.pool.live() - self.pool.slab_pages());
        for (&page, &count) in &references {
            assert_eq!(self.pool.references(page), count, "page {page}");
        }
        self.assert_blocks();
    }

    fn assert_slots(&self) {
        assert_eq!(self.lengths.len(), self.tail_pages.len());
        let slots: HashSet<u32> = self.nodes.values().map(|node| node.slot).collect();
        assert_eq!(slots.len(), self.nodes.len(), "two nodes share a slot");
        let free: HashSet<u32> = self.free_slots.iter().copied().collect();
        assert_eq!(free.len(), self.free_slots.len(), "a slot is free twice");
        assert!(slots.is_disjoint(&free));
        assert_eq!(slots.len() + free.len(), self.lengths.len());
        for slot in free {
            assert_eq!(self.lengths[slot as usize], 0);
            assert_eq!(self.tail_pages[slot as usize], NONE);
        }
    }

    fn assert_links(&self) {
        let mut reached = 0;
        for (tree, record) in &self.trees {
            let root = record.root;
            assert_eq!(self.nodes[root].parent, None);
            let mut next = Some(root);
            while let Some(key) = next {
                reached += 1;
                assert_eq!(self.nodes[key].tree, tree);
                self.assert_children(key);
                next = self.next_in_subtree(key, root);
            }
        }
        assert_eq!(reached, self.nodes.len(), "every node is in one tree");
    }

    fn assert_children(&self, key: NodeKey) {
        let mut previous = None;
        let mut next = self.nodes[key].first_child;
        while let Some(child) = next {
            let record = &self.nodes[child];
            assert_eq!((record.parent, record.previous), (Some(key), previous));
            previous = next;
            next = record.next;
        }
        assert_eq!(self.nodes[key].last_child, previous);
        if let Content::Owned { state, .. } = self.nodes[key].content {
            let is_leaf = self.nodes[key].first_child.is_none();
            assert!(is_leaf || state != State::Growing, "an inner node grows");
        }
    }

    /// Checks pages of other formats against the pool's count.
    fn assert_coded(&self) {
        let mut held = HashMap::<_, (SlabClass, HashSet<PageId>)>::new();
        for (key, node) in self.nodes.iter() {
            let (Some(coded), Content::Owned { pages, .. }) = (node.coded, &node.content) else {
                continue;
            };
            assert!(coded.pages > 0 && node.coded_tokens() <= self.length_of(key));
            if let Some(compacted) = &node.compacted {
                assert!(pages[..coded.pages as usize].iter().all(|&page| page == NONE));
                compacted.assert_invariants(self.directory.as_ref().expect("a node has cells"));
                continue;
            }
            let (_, held) = held.entry(coded.class.key).or_insert((coded.class, HashSet::new()));
            for &page in &pages[..coded.pages as usize] {
                assert!(held.insert(page), "two nodes have page {page}");
            }
        }
        for (class, held) in held.into_values() {
            assert_eq!(self.pool.slab_use(class).pages as usize, held.len());
        }
    }

    /// Checks that every index of the directory is a node's or free.
    fn assert_directory(&self) {
        let compacted = self.nodes.values().filter_map(|node| node.compacted.as_deref());
        let (mut indices, mut pages) = (0, 0);
        for compacted in compacted {
            indices += compacted.indices.end - compacted.indices.start;
            pages += compacted.pages.len() as u32;
        }
        let free = self.directory.as_ref().map_or(0, Directory::free_indices);
        assert_eq!(indices + free, self.directory.as_ref().map_or(0, Directory::stride));
        assert_eq!(pages, self.compacted_pages);
    }

    /// Checks a node's pages and tail page; the native pages that it has a token on.
    fn assert_pages(&self, key: NodeKey, content: &Content) -> Vec<PageId> {
        let slot = self.nodes[key].slot as usize;
        let length = self.lengths[slot];
        let held = match content {
            Content::Owned { pages, .. } => {
                assert_eq!(pages.len() as u32, length.div_ceil(PAGE_TOKENS));
                pages[self.nodes[key].coded_pages()..].to_vec()
            }
            Content::Draft { block, begin, above } => {
                let parent = self.nodes[key].parent.expect("a draft has a trunk");
                assert_eq!(*above, self.path_tokens(parent));
                let end = (begin + length).div_ceil(PAGE_TOKENS) as usize;
                self.blocks[*block].pages[(begin / PAGE_TOKENS) as usize..end].to_vec()
            }
        };
        assert_eq!(self.tail_pages[slot], held.last().copied().unwrap_or(NONE));
        held
    }

    fn assert_blocks(&self) {
        for (key, block) in &self.blocks {
            let of_block = |content: &Content| matches!(content, Content::Draft { block, .. } if *block == key);
            let nodes = self.nodes.values().filter(|node| of_block(&node.content));
            assert_eq!(nodes.count() as u32, block.nodes);
            let nodes = self.nodes.values().filter(|node| of_block(&node.content));
            let held: u32 = nodes.map(|node| self.lengths[node.slot as usize]).sum();
            assert_eq!(held, block.held);
            assert!(block.nodes > 0);
            assert_eq!(block.pages.len() as u32, block.tokens.div_ceil(PAGE_TOKENS));
            assert!(matches!(
                self.nodes[block.trunk].content,
                Content::Owned { state: State::Drafted(block), .. } if block == key
            ));
        }
    }
}
