//! A cache with compacted nodes and its shadow: the rows that each KV head should have.

mod grow;
mod random;

use std::collections::HashMap;

use deft::plan::HeadShape;
use deft::retain::{Compaction, HeadCompaction, Source};
use deft::{
    Batch, CacheError, DraftNode, Grouping, Kv, KvElement, KvFormat, NodeKey, Out, TreeCache,
};
use kernels_gpu::abi::PAGE_TOKENS;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::coded::Place;
use crate::oracle::{reference_params, relative_l2};
use crate::reference::attention::attend_biased_row;

pub use self::grow::{asked, grow};
pub use self::random::{Thinning, random_compaction};

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

/// A cache and what it should hold.
#[derive(Debug)]
pub struct Compacted<T> {
    /// The cache.
    pub cache: TreeCache,
    nodes: HashMap<NodeKey, Node>,
    rng: SmallRng,
    element: std::marker::PhantomData<T>,
}

/// How far a row may be from f64 over the rows that are left.
const fn tolerance(dtype: deft::DType) -> f64 {
    match dtype {
        deft::DType::F32 => 1e-5,
        deft::DType::Bf16 => 5e-3,
        _ => 1e-3,
    }
}

impl<T: KvElement> Compacted<T> {
    /// An empty cache of `layers` layers and `pages` pages.
    ///
    /// # Panics
    /// If that place cannot have them.
    pub fn on(place: &Place, heads: HeadShape, layers: u32, pages: u64, seed: u64) -> Self {
        let page = 2 * u64::from(PAGE_TOKENS) * u64::from(heads.kv_heads * heads.head_dim * layers);
        let builder = place.builder(seed).layers(layers).dtype(T::DTYPE);
        let builder = builder.heads(heads.q_heads, heads.kv_heads, heads.head_dim);
        let cache = builder.capacity_bytes(pages * page * T::DTYPE.bytes() as u64).build();
        Self::of(cache.unwrap(), seed)
    }

    /// The same of an empty cache.
    pub fn of(cache: TreeCache, seed: u64) -> Self {
        Self {
            cache,
            nodes: HashMap::new(),
            rng: SmallRng::seed_from_u64(seed),
            element: std::marker::PhantomData,
        }
    }

    /// Random numbers.
    pub fn rng(&mut self) -> &mut SmallRng {
        &mut self.rng
    }

    fn heads(&self) -> usize {
        let config = self.cache.config();
        (config.layers * config.kv_heads) as usize
    }

    fn insert(&mut self, key: NodeKey, parent: Option<NodeKey>) {
        let heads = vec![Vec::new(); self.heads()];
        self.nodes.insert(key, Node { parent, heads, length: 0, compacted: 0 });
    }

    /// A root of `tokens` random tokens.
    pub fn root(&mut self, tokens: u32) -> NodeKey {
        let root = self.cache.insert_root().unwrap();
        self.insert(root, None);
        self.push(root, tokens);
        root
    }

    /// `n` children of a node.
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        let children = self.cache.fork(node, n).unwrap();
        for &child in &children {
            self.insert(child, Some(node));
        }
        children
    }

    /// A draft below a node, with its tokens.
    pub fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey> {
        let keys = self.cache.insert_draft(trunk, draft).unwrap();
        for (&key, node) in keys.iter().zip(draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            self.insert(key, Some(parent));
            self.push(key, node.tokens);
        }
        keys
    }

    /// Writes new tokens of a node, or all that a draft's node has.
    pub fn push(&mut self, node: NodeKey, tokens: u32) {
        if tokens > 0 {
            let batch = self.cache.batch(&[(node, tokens)]).unwrap();
            self.write(&batch);
        }
    }

    /// Writes a batch's tokens.
    pub fn write(&mut self, batch: &Batch) {
        let config = *self.cache.config();
        let (dims, kv_heads) = (config.head_dim as usize, config.kv_heads as usize);
        let width = dims * kv_heads;
        let rows = batch.nodes().iter();
        let rows: Vec<_> =
            rows.flat_map(|&(node, n)| std::iter::repeat_n(node, n as usize)).collect();
        for layer in 0..config.layers {
            let mut values = || {
                let elements = 0..rows.len() * width;
                elements.map(|_| T::from_f32(self.rng.random_range(-1.5..1.5))).collect::<Vec<T>>()
            };
            let (k, v) = (values(), values());
            self.cache.append(layer, batch, Kv::new(&k, &v)).unwrap();
            for (row, node) in rows.iter().enumerate() {
                for head in 0..kv_heads {
                    let at = row * width + head * dims..row * width + (head + 1) * dims;
                    let wide = |half: &[T]| half[at.clone()].iter().map(exact).collect();
                    let node = self.nodes.get_mut(node).unwrap();
                    let rows = &mut node.heads[layer as usize * kv_heads + head];
                    let held = rows.len() as u32;
                    let token = rows.last().map_or(0, |row| row.token + 1).max(node.compacted);
                    debug_assert!(token >= held || node.compacted > 0);
                    rows.push(Row { k: wide(&k), v: wide(&v), bias: 0.0, token });
                }
            }
        }
        for node in rows {
            self.nodes.get_mut(&node).unwrap().length += 1;
        }
    }

    /// Rows of a head, in the cache's order.
    pub fn rows(&self, node: NodeKey, head: usize) -> &[Row] {
        &self.nodes[&node].heads[head]
    }

    /// Rows of each head that stand for tokens before `tokens`: what a compaction of so many tokens chooses from.
    pub fn counts(&self, node: NodeKey, tokens: u32) -> Vec<u32> {
        let node = &self.nodes[&node];
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
        let shadow = self.nodes.get_mut(&node).unwrap();
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
            self.nodes.get_mut(&child).unwrap().parent = Some(top);
        }
        self.forget_pruned();
        Ok(())
    }

    /// Gives `top` the rows of `below`, none of which is compacted.
    fn join(&mut self, top: NodeKey, below: NodeKey) {
        let Node { heads, length, .. } = self.nodes[&below].clone();
        let top = self.nodes.get_mut(&top).unwrap();
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
        self.nodes.retain(|&node, _| forest.length(node).is_ok());
    }

    /// Checks the forest's invariants, and what it says of each compacted node.
    pub fn check_counters(&self) {
        let forest = self.cache.forest();
        forest.debug_assert_invariants();
        for (&key, node) in &self.nodes {
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
        let any = self.nodes.values().any(|node| node.compacted > 0);
        assert!(!any || compacted.is_some());
    }

    /// Attends at the last tokens of nodes and compares with f64 over the rows that are left.
    pub fn check(&mut self, nodes: &[(NodeKey, u32)], grouping: Grouping, context: &str) {
        self.cache.set_grouping(grouping);
        let batch = self.cache.batch_held(nodes).unwrap();
        self.check_batch(&batch, context);
    }

    /// The same of a batch.
    pub fn check_batch(&mut self, batch: &Batch, context: &str) {
        let config = *self.cache.config();
        let (dims, q_heads) = (config.head_dim as usize, config.q_heads as usize);
        for layer in 0..config.layers {
            let elements = batch.rows() * q_heads * dims;
            let q: Vec<T> =
                (0..elements).map(|_| T::from_f32(self.rng.random_range(-2.0..2.0))).collect();
            let mut out = vec![T::from_f32(f32::NAN); elements];
            let mut lse = vec![f32::NAN; batch.rows() * q_heads];
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(layer, batch, &q, results).unwrap();
            let rows = batch.nodes().iter().flat_map(|&(node, tokens)| {
                (0..tokens as usize).map(move |row| (node, tokens as usize - 1 - row))
            });
            for (row, (node, hidden)) in rows.enumerate() {
                for head in 0..q_heads {
                    let at = row * q_heads + head;
                    let (right, right_lse) =
                        self.right(layer, (node, hidden), head, &q[at * dims..][..dims]);
                    let context = format!(
                        "{context}, {:?}, layer {layer}, row {row}, head {head}",
                        batch.grouping()
                    );
                    let error = relative_l2(&out[at * dims..][..dims], &right);
                    assert!(error <= tolerance(T::DTYPE), "{context}: off by {error}");
                    let error = (f64::from(lse[at]) - right_lse).abs();
                    let most = 1e-4 * right_lse.abs().max(1.0);
                    assert!(
                        error <= most || f64::from(lse[at]) == right_lse,
                        "{context}: LSE off by {error}"
                    );
                }
            }
        }
    }

    /// What attention should give at a node that does not see its last `hidden` tokens.
    pub fn right(
        &self,
        layer: u32,
        (node, hidden): (NodeKey, usize),
        head: usize,
        q: &[T],
    ) -> (Vec<f64>, f64) {
        let config = self.cache.config();
        let heads = HeadShape {
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let params = reference_params(heads, &config.params());
        let of = layer as usize * config.kv_heads as usize + head / heads.group_size() as usize;
        let path = std::iter::successors(Some(node), |node| self.nodes[node].parent);
        let mut path: Vec<_> = path.map(|node| &self.nodes[&node].heads[of]).collect();
        path.reverse();
        let mut seen: Vec<_> =
            path.into_iter().flatten().map(|row| ((&row.k[..], &row.v[..]), row.bias)).collect();
        seen.truncate(seen.len() - hidden);
        let q: Vec<f64> = q.iter().map(exact).collect();
        attend_biased_row(&params, &q, &seen)
    }
}

fn exact<T: KvElement>(element: &T) -> f64 {
    element.to_f32().into()
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
        sum.into_iter().map(|x| exact(&T::from_f32(x))).collect()
    };
    let (k, v) = (sum(|row| &row.k, |source| source.k), sum(|row| &row.v, |source| source.v));
    Row { k, v, bias: 0.0, token: pivot.token }
}
