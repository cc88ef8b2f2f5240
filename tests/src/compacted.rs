//! A cache with compacted nodes: the rows that each KV head should have.

mod random;

use std::collections::HashMap;

use deft::retain::{Compaction, HeadCompaction, Source};
use deft::{CacheConfig, CacheError, KvElement, KvFormat, NodeKey};
use rand::RngExt;

use crate::reference::attention::KeyValue;
use crate::shadow::Token;
use crate::world::{Expected, Place, World, ask, exact, grow};

pub use self::random::{Thinning, random_compaction};

/// A cache of which nodes are compacted.
pub type Compacted<T> = World<T, Rows>;

/// A row of one layer and KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Key: `[head_dim]`.
    pub k: Vec<f64>,
    /// Value: `[head_dim]`.
    pub v: Vec<f64>,
    /// What is added to its logit.
    pub bias: f64,
    /// The token of the node that it stands for.
    pub token: u32,
}

#[derive(Clone, Debug)]
struct Node {
    parent: Option<NodeKey>,
    /// `[layers, kv_heads][rows]`.
    heads: Vec<Vec<Row>>,
    length: u32,
    /// Tokens that are compacted.
    compacted: u32,
}

/// The rows that are left of every node.
#[derive(Debug)]
pub struct Rows {
    nodes: HashMap<NodeKey, Node>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Expected for Rows {
    const F16_TOLERANCE: f64 = 1e-3;

    fn new(config: &CacheConfig, _: &Place) -> Self {
        let [layers, kv_heads, head_dim] =
            [config.layers, config.kv_heads, config.head_dim].map(|n| n as usize);
        Self { nodes: HashMap::new(), layers, kv_heads, head_dim }
    }

    fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        let heads = vec![Vec::new(); self.layers * self.kv_heads];
        self.nodes.insert(node, Node { parent, heads, length: 0, compacted: 0 });
    }

    fn push(&mut self, node: NodeKey, token: Token) {
        let node = self.nodes.get_mut(&node).unwrap();
        let of_heads = token
            .iter()
            .flat_map(|[k, v]| k.chunks_exact(self.head_dim).zip(v.chunks_exact(self.head_dim)));
        for (rows, (k, v)) in node.heads.iter_mut().zip(of_heads) {
            rows.push(Row { k: k.to_vec(), v: v.to_vec(), bias: 0.0, token: node.length });
        }
        node.length += 1;
    }

    fn path(&self, node: NodeKey, layer: usize, kv_head: usize) -> Vec<(KeyValue<'_>, f64)> {
        let of = layer * self.kv_heads + kv_head;
        let path = std::iter::successors(Some(node), |node| self.nodes[node].parent);
        let mut path: Vec<_> = path.map(|node| &self.nodes[&node].heads[of]).collect();
        path.reverse();
        path.into_iter().flatten().map(|row| ((&row.k[..], &row.v[..]), row.bias)).collect()
    }
}

impl<T: KvElement> Compacted<T> {
    /// A random forest of which some nodes are compacted, growing ones as well; the nodes that ask.
    pub fn grow_thinned(&mut self, thinning: Thinning) -> Vec<(NodeKey, u32)> {
        let nodes = grow(self, |world, node| {
            // Twice now and then.
            for _ in 0..world.rng().random_range(0..3) {
                if let Some(compaction) = random_compaction(world, node, thinning) {
                    world.compact(node, &compaction).unwrap();
                }
            }
        });
        ask(self, &nodes)
    }

    /// Rows of a head, in the cache's order.
    pub fn rows(&self, node: NodeKey, head: usize) -> &[Row] {
        &self.expected.nodes[&node].heads[head]
    }

    /// Rows of each head that stand for tokens before `tokens`: what a compaction of so many tokens chooses from.
    pub fn counts(&self, node: NodeKey, tokens: u32) -> Vec<u32> {
        let node = &self.expected.nodes[&node];
        let native = node.length - tokens;
        node.heads.iter().map(|rows| rows.len() as u32 - native).collect()
    }

    /// Compacts a node, here and in the shadow; the pages that came free.
    ///
    /// # Errors
    /// The cache's; then the shadow is as it was.
    pub fn compact(&mut self, node: NodeKey, compaction: &Compaction) -> Result<u32, CacheError> {
        let counts = self.counts(node, compaction.tokens);
        let freed = self.cache.compact_node(node, compaction)?;
        let shadow = self.expected.nodes.get_mut(&node).unwrap();
        let same = |(rows, of): (&Vec<Row>, &HeadCompaction)| {
            of.each_row()
                .all(|(sources, row)| rows[sources[0].row as usize].bias == f64::from(row.bias))
        };
        if compaction.is_identity(&counts) && shadow.heads.iter().zip(&compaction.heads).all(same) {
            return Ok(freed);
        }
        for ((rows, of), count) in shadow.heads.iter_mut().zip(&compaction.heads).zip(counts) {
            let mut new: Vec<Row> = of
                .each_row()
                .map(|(sources, row)| Row { bias: row.bias.into(), ..merged::<T>(rows, sources) })
                .collect();
            new.extend_from_slice(&rows[count as usize..]);
            *rows = new;
        }
        shadow.compacted = compaction.tokens;
        Ok(freed)
    }

    /// Accepts a path, here and in the shadow.
    pub fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) {
        self.cache.accept(trunk, path).unwrap();
        path.iter().for_each(|&node| self.join(trunk, node));
        self.forget_pruned();
    }

    /// Merges a chain, here and in the shadow.
    ///
    /// # Errors
    /// The cache's; then the shadow is as it was.
    pub fn merge_chain(&mut self, top: NodeKey) -> Result<(), CacheError> {
        let mut chain = vec![top];
        let mut children;
        loop {
            let last = chain[chain.len() - 1];
            children = self.cache.forest().children(last)?.collect::<Vec<_>>();
            match children[..] {
                [child] => chain.push(child),
                _ => break,
            }
        }
        self.cache.merge_chain(top)?;
        chain[1..].iter().for_each(|&node| self.join(top, node));
        for child in children {
            self.expected.nodes.get_mut(&child).unwrap().parent = Some(top);
        }
        self.forget_pruned();
        Ok(())
    }

    /// Gives `top` the rows of `below`, none of which is compacted.
    fn join(&mut self, top: NodeKey, below: NodeKey) {
        let Node { heads, length, .. } = self.expected.nodes[&below].clone();
        let top = self.expected.nodes.get_mut(&top).unwrap();
        for (rows, more) in top.heads.iter_mut().zip(heads) {
            rows.extend(more.into_iter().map(|row| Row { token: row.token + top.length, ..row }));
        }
        top.length += length;
    }

    /// Prunes a node and all below it.
    pub fn prune(&mut self, node: NodeKey) {
        self.cache.prune(node).unwrap();
        self.forget_pruned();
    }

    /// Forgets nodes that are gone from the cache.
    pub fn forget_pruned(&mut self) {
        let forest = self.cache.forest();
        self.expected.nodes.retain(|&node, _| forest.length(node).is_ok());
    }

    /// Checks the forest's invariants, and what it says of each compacted node.
    pub fn check_counters(&self) {
        let forest = self.cache.forest();
        forest.debug_assert_invariants();
        for (&key, node) in &self.expected.nodes {
            assert_eq!(forest.length(key).unwrap(), node.length);
            assert_eq!(forest.compacted_tokens(key).unwrap(), node.compacted);
            let counts = self.counts(key, node.compacted);
            let heads = forest.compacted_rows(key).unwrap();
            for ((held, rows), count) in heads.iter().zip(&node.heads).zip(counts) {
                let rows = &rows[..count as usize];
                assert!(rows.iter().map(|row| row.token).eq(held.positions.iter().copied()));
                let bias = |at| held.biases.get(at).copied().unwrap_or(0.0);
                assert!((0..).zip(rows).all(|(at, row)| row.bias == f64::from(bias(at))));
            }
        }
        let pages: u32 = self.cache.bytes().iter().map(|of| of.pages).sum();
        assert_eq!(pages, forest.pool().live());
        let compacted = self.cache.bytes();
        let compacted = compacted.iter().find(|of| of.format == KvFormat::Compacted);
        let any = self.expected.nodes.values().any(|node| node.compacted > 0);
        assert!(!any || compacted.is_some());
    }
}

/// The weighted sum of rows, in f32, rounded once.
fn merged<T: KvElement>(rows: &[Row], sources: &[Source]) -> Row {
    let pivot = &rows[sources[0].row as usize];
    if let [Source { k: 1.0, v: 1.0, .. }] = sources {
        return pivot.clone();
    }
    let sum = |half: fn(&Row) -> &[f64], weight: fn(&Source) -> f32| {
        let mut sum = vec![0.0_f32; pivot.k.len()];
        for source in sources {
            for (sum, x) in sum.iter_mut().zip(half(&rows[source.row as usize])) {
                *sum += weight(source) * *x as f32;
            }
        }
        exact(&sum.into_iter().map(T::from_f32).collect::<Vec<T>>())
    };
    let (k, v) = (sum(|row| &row.k, |source| source.k), sum(|row| &row.v, |source| source.v));
    Row { k, v, bias: 0.0, token: pivot.token }
}
