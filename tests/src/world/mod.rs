//! A cache with its shadow, what every operation should leave in it; suites differ in what they do to nodes.

mod grow;
mod place;

use std::marker::PhantomData;

use deft::attention::RotaryTable;
use deft::cache::CacheShape;
use deft::plan::HeadShape;
use deft::{
    Batch, CacheConfig, DType, DraftNode, Grouping, Kv, KvElement, NodeKey, Out, TreeCache,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::oracle::{reference_params, relative_l2};
use crate::reference::attention::{KeyValue, attend_biased_row};
use crate::shadow::Token;

pub use self::grow::{ask, decode_behind, grow};
pub use self::place::Place;

/// What a cache should hold.
pub trait Expected {
    /// How far a row of f16 may be from f64, relative.
    const F16_TOLERANCE: f64;

    /// Of an empty cache.
    fn new(config: &CacheConfig, place: &Place) -> Self;

    /// Adds a node without tokens.
    fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>);

    /// Adds a token to a node.
    fn push(&mut self, node: NodeKey, token: Token);

    /// Rows of a KV head on the path down to `node`, each with what is added to its logit.
    fn path(&self, node: NodeKey, layer: usize, kv_head: usize) -> Vec<(KeyValue<'_>, f64)>;
}

/// A cache and what it should hold.
#[derive(Debug)]
pub struct World<T, S> {
    /// The cache.
    pub cache: TreeCache,
    /// What it should hold.
    pub(crate) expected: S,
    rng: SmallRng,
    element: PhantomData<T>,
}

impl<T: KvElement, S: Expected> World<T, S> {
    /// An empty cache of `layers` layers and `pages` native pages.
    ///
    /// # Panics
    /// If that place cannot have them.
    pub fn on(place: &Place, heads: HeadShape, layers: u32, pages: u64, seed: u64) -> Self {
        let HeadShape { kv_heads, head_dim, .. } = heads;
        let shape = CacheShape { layers, kv_heads, head_dim, dtype: T::DTYPE, pages: 1 };
        let builder = place.builder(seed).layers(layers).dtype(T::DTYPE);
        let builder = builder.heads(heads.q_heads, heads.kv_heads, heads.head_dim);
        let cache = builder.capacity_bytes(pages * shape.padded().page_bytes()).build().unwrap();
        Self {
            expected: S::new(cache.config(), place),
            cache,
            rng: SmallRng::seed_from_u64(seed),
            element: PhantomData,
        }
    }

    /// Random numbers.
    pub fn rng(&mut self) -> &mut SmallRng {
        &mut self.rng
    }

    /// A root of `tokens` random tokens.
    pub fn root(&mut self, tokens: u32) -> NodeKey {
        let root = self.cache.insert_root().unwrap();
        self.expected.insert(root, None);
        self.push(root, tokens);
        root
    }

    /// `n` children of a node.
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        let children = self.cache.fork(node, n).unwrap();
        for &child in &children {
            self.expected.insert(child, Some(node));
        }
        children
    }

    /// A draft below a node, with its tokens.
    pub fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey> {
        let keys = self.cache.insert_draft(trunk, draft).unwrap();
        for (&key, node) in keys.iter().zip(draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            self.expected.insert(key, Some(parent));
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

    /// Writes a batch's tokens. Channels differ in scale, as a model's do.
    pub fn write(&mut self, batch: &Batch) {
        let config = *self.cache.config();
        let width = (config.kv_heads * config.head_dim) as usize;
        let mut layers: Vec<[Vec<T>; 2]> = Vec::new();
        for layer in 0..config.layers {
            let [k, v] = [(); 2].map(|()| {
                let elements = 0..batch.rows() * width;
                let value = |i: usize| {
                    let scale = [1.0, 0.3, 2.0, 0.1, 0.7][i % width % 5];
                    T::from_f32(scale * self.rng.random_range(-1.5..1.5f32))
                };
                elements.map(value).collect()
            });
            let rope = None::<&RotaryTable>;
            self.cache.append(layer, batch, Kv { rope, ..Kv::new(&k, &v) }).unwrap();
            layers.push([k, v]);
        }
        let nodes = batch.nodes().iter();
        let nodes = nodes.flat_map(|&(node, tokens)| std::iter::repeat_n(node, tokens as usize));
        for (row, node) in nodes.enumerate() {
            let row = |values: &Vec<T>| exact(&values[row * width..(row + 1) * width]);
            self.expected.push(node, layers.iter().map(|[k, v]| [row(k), row(v)]).collect());
        }
    }

    /// Attends at the last tokens of nodes and compares with f64 over what is expected.
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
            let elements = 0..batch.rows() * q_heads * dims;
            let q: Vec<T> =
                elements.map(|_| T::from_f32(self.rng.random_range(-2.0..2.0))).collect();
            let mut out = vec![T::from_f32(f32::NAN); q.len()];
            let mut lse = vec![f32::NAN; batch.rows() * q_heads];
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(layer, batch, &q, results).unwrap();
            let rows = batch.nodes().iter().flat_map(|&(node, tokens)| {
                (0..tokens as usize).rev().map(move |hidden| (node, hidden))
            });
            let answers = rows.flat_map(|row| (0..q_heads).map(move |head| (row, head)));
            for (at, (row, head)) in answers.enumerate() {
                let own = at * dims..(at + 1) * dims;
                let (right, right_lse) = self.right(layer, row, head, &q[own.clone()]);
                let grouping = batch.grouping();
                let context =
                    format!("{context}, {grouping:?}, layer {layer}, {row:?}, head {head}");
                let error = relative_l2(&out[own], &right);
                assert!(error <= Self::tolerance(), "{context}: off by {error}");
                let lse = f64::from(lse[at]);
                let near = (lse - right_lse).abs() <= 1e-4 * right_lse.abs().max(1.0);
                assert!(near || lse == right_lse, "{context}: LSE is {lse}, not {right_lse}");
            }
        }
    }

    const fn tolerance() -> f64 {
        match T::DTYPE {
            DType::F32 => 1e-5,
            DType::Bf16 => 5e-3,
            _ => S::F16_TOLERANCE,
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
        let kv_head = head / heads.group_size() as usize;
        let mut seen = self.expected.path(node, layer as usize, kv_head);
        seen.truncate(seen.len() - hidden);
        attend_biased_row(&reference_params(heads, &config.params()), &exact(q), &seen)
    }
}

/// Elements in f64.
pub(crate) fn exact<T: KvElement>(elements: &[T]) -> Vec<f64> {
    elements.iter().map(|element| element.to_f32().into()).collect()
}
