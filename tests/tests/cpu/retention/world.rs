//! A cache with random keys, values and queries, and a plain record of all of them.

use std::collections::HashMap;

use deft::attention::AttentionParams;
use deft::plan::HeadShape;
use deft::retain::Observe;
use deft::{Batch, DType, Device, Kv, NodeKey, Out, TreeCache};
use deft_tests::inputs::normals;
use deft_tests::oracle::reference_params;
use deft_tests::problem::heads;
use deft_tests::reference::attention::logit;
use deft_tests::reference::scores::TokenScore;

pub(crate) const HEADS: HeadShape = heads(4, 2, 64);
pub(crate) const LAYERS: u32 = 2;
const DIMS: usize = 64;

/// A row that was run: its node, and of each layer query and LSE.
struct Query {
    node: NodeKey,
    /// Tokens that it sees.
    sees: u32,
    q: Vec<Vec<f32>>,
    lse: Vec<Vec<f32>>,
}

pub(crate) struct World {
    pub(crate) cache: TreeCache,
    seed: u64,
    /// Keys of each node's tokens by layer: `[tokens, kv_heads, head_dim]`.
    keys: HashMap<NodeKey, Vec<Vec<f32>>>,
    queries: Vec<Query>,
}

impl World {
    pub(crate) fn new(pages: u64) -> Self {
        let page = 64 * 2 * 2 * 64 * 4 * u64::from(LAYERS);
        let cache = TreeCache::builder(&Device::cpu())
            .layers(LAYERS)
            .heads(HEADS.q_heads, HEADS.kv_heads, HEADS.head_dim)
            .dtype(DType::F32)
            .capacity_bytes(pages * page)
            .build();
        let cache = cache.unwrap();
        Self { cache, seed: 1, keys: HashMap::new(), queries: Vec::new() }
    }

    fn random(&mut self, count: usize, scale: f32) -> Vec<f32> {
        self.seed += 1;
        normals(self.seed, count, scale)
    }

    /// Adds tokens to each node, attends, and scores with `observe`; the outputs of all layers. `scale` makes queries steep.
    pub(crate) fn run(
        &mut self,
        nodes: &[(NodeKey, u32)],
        observe: Option<Observe>,
        scale: f32,
    ) -> Vec<Vec<f32>> {
        let batch = self.cache.batch(nodes).unwrap();
        let outputs = (0..LAYERS).map(|layer| {
            let k = self.random(batch.rows() * 2 * DIMS, 1.0);
            let v = self.random(batch.rows() * 2 * DIMS, 1.0);
            self.cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
            self.note_keys(layer, &batch, &k);
            self.attend(layer, &batch, observe, scale)
        });
        outputs.collect()
    }

    /// The same for tokens that the nodes hold.
    pub(crate) fn ask(
        &mut self,
        nodes: &[(NodeKey, u32)],
        observe: Option<Observe>,
    ) -> Vec<Vec<f32>> {
        let batch = self.cache.batch_held(nodes).unwrap();
        (0..LAYERS).map(|layer| self.attend(layer, &batch, observe, 1.0)).collect()
    }

    fn attend(
        &mut self,
        layer: u32,
        batch: &Batch,
        observe: Option<Observe>,
        scale: f32,
    ) -> Vec<f32> {
        let q = self.random(batch.rows() * 4 * DIMS, scale);
        let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; batch.rows() * 4]);
        self.cache.attend(layer, batch, &q, Out::with_lse(&mut out, &mut lse)).unwrap();
        if let Some(observe) = observe {
            self.cache.score(layer, batch, observe, &q, &lse).unwrap();
        }
        self.note_queries(layer, batch, &q, &lse);
        out
    }

    fn note_keys(&mut self, layer: u32, batch: &Batch, k: &[f32]) {
        let mut rows = k.chunks_exact(2 * DIMS);
        for &(node, tokens) in batch.nodes() {
            let layers = self.keys.entry(node).or_insert(vec![Vec::new(); LAYERS as usize]);
            rows.by_ref().take(tokens as usize).for_each(|row| layers[layer as usize].extend(row));
        }
    }

    fn note_queries(&mut self, layer: u32, batch: &Batch, q: &[f32], lse: &[f32]) {
        if layer == 0 {
            let nodes = batch.nodes().iter().flat_map(|&(node, n)| (0..n).map(move |_| node));
            for (node, &position) in nodes.zip(batch.positions()) {
                let (q, lse) = (Vec::new(), Vec::new());
                self.queries.push(Query { node, sees: position + 1, q, lse });
            }
        }
        let first = self.queries.len() - batch.rows();
        let rows = q.chunks_exact(4 * DIMS).zip(lse.chunks_exact(4));
        for (query, (q, lse)) in self.queries[first..].iter_mut().zip(rows) {
            query.q.push(q.to_vec());
            query.lse.push(lse.to_vec());
        }
    }

    /// What all queries so far, of a node's the last `window`, made of the tokens of `node`, by layer and KV head: from
    /// what was noted, not from the cache.
    pub(crate) fn scores(&self, node: NodeKey, window: u32) -> Vec<Vec<TokenScore>> {
        self.scores_by(node, window, |_| true)
    }

    /// The same of the queries of some nodes.
    pub(crate) fn scores_by(
        &self,
        node: NodeKey,
        window: u32,
        of: impl Fn(NodeKey) -> bool,
    ) -> Vec<Vec<TokenScore>> {
        let forest = self.cache.forest();
        let params = reference_params(HEADS, &AttentionParams::new(64));
        let first = forest.context_length(node).unwrap() - u64::from(forest.length(node).unwrap());
        let tokens = forest.length(node).unwrap() as usize;
        let mut scores = vec![vec![TokenScore::default(); tokens]; (LAYERS * 2) as usize];
        for query in &self.queries {
            let end = forest.context_length(query.node).unwrap() as u32;
            let counts = end - query.sees < window && of(query.node);
            if !counts || !self.is_above(node, query.node) {
                continue;
            }
            let seen = (u64::from(query.sees).saturating_sub(first) as usize).min(tokens);
            for layer in 0..LAYERS as usize {
                for head in 0..4 {
                    let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                    let q = wide(&query.q[layer][head * DIMS..][..DIMS]);
                    let kv_head = head / 2;
                    let of_head = &mut scores[layer * 2 + kv_head];
                    for (token, score) in of_head.iter_mut().take(seen).enumerate() {
                        let at = (token * 2 + kv_head) * DIMS;
                        let k = wide(&self.keys[&node][layer][at..at + DIMS]);
                        let lse = query.lse[layer][head].into();
                        score.take(logit(&params, &q, &k), lse, query.sees);
                    }
                }
            }
        }
        scores
    }

    fn is_above(&self, node: NodeKey, below: NodeKey) -> bool {
        let mut next = Some(below);
        while let Some(key) = next {
            if key == node {
                return true;
            }
            next = self.cache.forest().parent(key).unwrap();
        }
        false
    }
}
