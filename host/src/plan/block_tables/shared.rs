//! The radix tree of the blocks that sequences share.

use std::collections::HashMap;
use std::ops::Range;

use kernels_gpu::abi::NONE;

use super::BlockTables;

/// The radix tree of the blocks that sequences may share.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// `nodes[0]` stands above the roots.
    nodes: Vec<Node>,
    /// A node by its parent and its first block.
    by_block: HashMap<(u32, i32), u32, foldhash::fast::RandomState>,
    /// First of each sequence's rows.
    pub(super) rows: Vec<u32>,
}

/// Blocks `begin..end` of `sequence`; of a leaf, all from `begin` on.
#[derive(Clone, Copy, Debug)]
struct Node {
    sequence: u32,
    begin: u32,
    end: u32,
    is_leaf: bool,
    parent: u32,
    first_child: u32,
    last_child: u32,
    next: u32,
}

/// What a walk meets.
pub(super) enum Found {
    Shared { sequence: u32, blocks: Range<u32> },
    Own { sequence: u32, begin: u32 },
}

impl Tree {
    /// Finds what sequences share, and links it in the order of the sequences.
    pub(super) fn find(&mut self, tables: &BlockTables<'_>) {
        self.nodes.clear();
        self.by_block.clear();
        self.rows.clear();
        self.push(0, 0..0, NONE, false);
        let mut row = 0;
        let mut leaves = Vec::new();
        for sequence in 0..tables.lens.len() {
            let queries = tables.queries(sequence);
            self.rows.push(row);
            row += queries;
            if queries > 0 {
                let full = tables.len(sequence).saturating_sub(queries) / tables.page_size;
                leaves.push(self.insert(tables, sequence as u32, full));
            }
        }
        for leaf in leaves {
            self.link(leaf);
        }
    }

    fn push(&mut self, sequence: u32, blocks: Range<u32>, parent: u32, is_leaf: bool) -> u32 {
        let Range { start: begin, end } = blocks;
        let [first_child, last_child, next] = [NONE; 3];
        self.nodes.push(Node {
            sequence,
            begin,
            end,
            is_leaf,
            parent,
            first_child,
            last_child,
            next,
        });
        self.nodes.len() as u32 - 1
    }

    /// Takes in a sequence of which the first `full` blocks may be shared; its leaf.
    fn insert(&mut self, tables: &BlockTables<'_>, sequence: u32, full: u32) -> u32 {
        let row = tables.row(sequence as usize);
        let (mut parent, mut at) = (0, 0);
        while at < full {
            let key = (parent, row[at as usize]);
            let Some(&child) = self.by_block.get(&key) else {
                parent = self.push(sequence, at..full, parent, false);
                self.by_block.insert(key, parent);
                break;
            };
            let Node { sequence: other, begin, end, .. } = self.nodes[child as usize];
            let both = at as usize..end.min(full) as usize;
            let other_row = tables.row(other as usize);
            at += alike(&row[both.clone()], &other_row[both]) as u32;
            if at == end {
                parent = child;
                continue;
            }
            // The child's first blocks become a node of their own.
            parent = self.push(other, begin..at, parent, false);
            self.by_block.insert(key, parent);
            self.by_block.insert((parent, other_row[at as usize]), child);
            (self.nodes[child as usize].begin, self.nodes[child as usize].parent) = (at, parent);
        }
        self.push(sequence, full..full, parent, true)
    }

    /// Makes a leaf and what is above it the last children of their parents, unless they are there.
    fn link(&mut self, leaf: u32) {
        let mut child = leaf;
        loop {
            let parent = self.nodes[child as usize].parent;
            let last = std::mem::replace(&mut self.nodes[parent as usize].last_child, child);
            if last != NONE {
                self.nodes[last as usize].next = child;
                return;
            }
            self.nodes[parent as usize].first_child = child;
            if parent == 0 {
                return;
            }
            child = parent;
        }
    }

    /// Goes through the tree depth first; `visit` gets the parent's run and gives its own.
    pub(super) fn walk(&self, mut visit: impl FnMut(Found, Option<u32>) -> u32) {
        let mut stack = vec![(self.nodes[0].first_child, None)];
        while let Some((at, parent)) = stack.pop() {
            let Some(&node) = self.nodes.get(at as usize) else { continue };
            stack.push((node.next, parent));
            // What has one child only is that sequence's own.
            let only = node.first_child == node.last_child;
            match self.nodes.get(node.first_child as usize) {
                Some(child) if !only || !child.is_leaf => {
                    let Node { sequence, begin, end, .. } = node;
                    let run = visit(Found::Shared { sequence, blocks: begin..end }, parent);
                    stack.push((node.first_child, Some(run)));
                }
                _ => {
                    let Node { sequence, begin, .. } = node;
                    visit(Found::Own { sequence, begin }, parent);
                }
            }
        }
    }
}

/// How many ids at the begin of both are the same.
fn alike(ids: &[i32], others: &[i32]) -> usize {
    let chunks = ids.chunks_exact(16).zip(others.chunks_exact(16));
    let begin = 16 * chunks.take_while(|(ids, others)| ids == others).count();
    let rest = ids[begin..].iter().zip(&others[begin..]);
    begin + rest.take_while(|(id, other)| id == other).count()
}
