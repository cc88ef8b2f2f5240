//! A cache on a GPU, the fake one or a real one, what it should hold, and tensors of a caller's on a stream of their own.

// A suite on a real GPU takes this file by its path, where a folder of its own would not be found.
#[path = "steps.rs"]
mod steps;

use std::collections::HashMap;

use deft::cache::{CacheShape, Store};
use deft::cuda::{CudaDevice, DeviceBuffer, DeviceRows, RawStream, Stream};
use deft::retain::Observe;
use deft::{Batch, CacheError, DType, Kv, NodeKey, Out, RotaryTable, TreeCache, bf16};

pub(crate) const LAYERS: u32 = 2;
const KV_HEADS: usize = 2;
const GROUP: usize = 2;
const PAGES: u64 = 128;
/// Most rows of a step.
const ROWS: usize = 256;

/// K and V of one token, `[layer][k, v][kv_heads, head_dim]`.
type Token = Vec<[Vec<f64>; 2]>;

pub(crate) struct World {
    dim: usize,
    pub(crate) cache: TreeCache,
    pub(crate) stream: Stream,
    nodes: HashMap<NodeKey, (Option<NodeKey>, Vec<Token>)>,
    layers: Vec<Tensors>,
    pub(crate) table: Option<RotaryTable>,
    /// The scores that steps leave.
    pub(crate) observe: Option<Observe>,
    seed: u64,
}

/// A layer's tensors.
struct Tensors {
    k: DeviceBuffer<bf16>,
    v: DeviceBuffer<bf16>,
    q: DeviceBuffer<bf16>,
    out: DeviceBuffer<bf16>,
    lse: DeviceBuffer<f32>,
}

/// What a step computes from: `[layer][k, v, q]`.
pub(crate) struct Inputs(Vec<[Vec<bf16>; 3]>);

impl World {
    /// A cache of heads of `dim`, with as many shares as the device likes or `shares`.
    pub(crate) fn new(device: &CudaDevice, dim: usize, shares: Option<u32>, seed: u64) -> Self {
        Self::of_store(device, dim, shares, seed, |bytes| Store::Fixed { bytes })
    }

    /// The same with what `store` makes of the bytes of all pages.
    pub(crate) fn of_store(
        device: &CudaDevice,
        dim: usize,
        shares: Option<u32>,
        seed: u64,
        store: impl Fn(u64) -> Store,
    ) -> Self {
        let (kv, q) = (KV_HEADS * dim, KV_HEADS * GROUP * dim);
        let tensors = |_| {
            let halves = |len| DeviceBuffer::uninitialized(device, "rows", len).unwrap();
            Tensors {
                k: halves(ROWS * kv),
                v: halves(ROWS * kv),
                q: halves(ROWS * q),
                out: halves(ROWS * q),
                lse: DeviceBuffer::uninitialized(device, "LSEs", ROWS * KV_HEADS * GROUP).unwrap(),
            }
        };
        let shape = CacheShape {
            layers: LAYERS,
            kv_heads: KV_HEADS as u32,
            head_dim: dim as u32,
            dtype: DType::Bf16,
            pages: 1,
        };
        let cache = TreeCache::builder(&device.clone().into())
            .layers(LAYERS)
            .heads((KV_HEADS * GROUP) as u32, KV_HEADS as u32, dim as u32)
            .dtype(DType::Bf16)
            .store(store(PAGES * shape.padded().page_bytes()))
            .planner(move |config| config.shares = shares.unwrap_or(config.shares));
        Self {
            dim,
            cache: cache.build().unwrap(),
            stream: Stream::new(device).unwrap(),
            nodes: HashMap::new(),
            layers: (0..LAYERS).map(tensors).collect(),
            table: None,
            observe: None,
            seed,
        }
    }

    fn kv(&self) -> usize {
        KV_HEADS * self.dim
    }

    fn q(&self) -> usize {
        GROUP * self.kv()
    }

    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    fn values(&mut self, count: usize) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.random(2001) as f32 / 1000.0 - 1.0)).collect()
    }

    pub(crate) fn root(&mut self) -> NodeKey {
        let root = self.cache.insert_root().unwrap();
        self.insert(root, None);
        root
    }

    pub(crate) fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        self.nodes.insert(node, (parent, Vec::new()));
    }

    pub(crate) fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        let children = self.cache.fork(node, n).unwrap();
        children.iter().for_each(|&child| self.insert(child, Some(node)));
        children
    }

    /// Tells what the cache should hold that a node took over others' tokens.
    pub(crate) fn joined(&mut self, node: NodeKey, others: &[NodeKey]) {
        for other in others {
            let tokens = self.nodes[other].1.clone();
            self.nodes.get_mut(&node).unwrap().1.extend(tokens);
        }
    }

    /// Tokens that the cache should hold of a node; those of one that has as many new ones as a batch's rows go.
    pub(crate) fn inputs(&mut self, batch: &Batch) -> Inputs {
        let rows = batch.rows();
        let widths = [self.kv(), self.kv(), self.q()];
        let layer = |world: &mut Self| widths.map(|width| world.values(rows * width));
        let inputs: Vec<_> = (0..LAYERS).map(|_| layer(self)).collect();
        let mut row = 0;
        for &(node, tokens) in batch.nodes() {
            let held = self.cache.forest().length(node).unwrap() as usize;
            let fresh: Vec<Token> = (row..row + tokens as usize)
                .map(|row| {
                    let of = |values: &[bf16]| {
                        values[row * self.kv()..][..self.kv()]
                            .iter()
                            .map(|v| v.to_f64())
                            .collect::<Vec<_>>()
                    };
                    let position = batch.positions()[row];
                    let layer = |[k, v, _]: &[Vec<bf16>; 3]| [self.rotated(of(k), position), of(v)];
                    inputs.iter().map(layer).collect()
                })
                .collect();
            row += tokens as usize;
            let all = &mut self.nodes.get_mut(&node).unwrap().1;
            all.truncate(held - tokens as usize);
            all.extend(fresh);
        }
        Inputs(inputs)
    }

    fn rotated(&self, mut key: Vec<f64>, position: u32) -> Vec<f64> {
        let half = self.dim / 2;
        let Some(table) = &self.table else { return key };
        for head in key.chunks_exact_mut(self.dim) {
            for dim in 0..half {
                let at = position as usize * half + dim;
                let (cos, sin) = (f64::from(table.cos()[at]), f64::from(table.sin()[at]));
                let (low, high) = (head[dim], head[dim + half]);
                (head[dim], head[dim + half]) = (low * cos - high * sin, high * cos + low * sin);
            }
        }
        key
    }

    /// Brings a step's tensors to the device and spoils its results, on the caller's stream.
    pub(crate) fn upload(&self, inputs: &Inputs) {
        for (tensors, [k, v, q]) in self.layers.iter().zip(&inputs.0) {
            tensors.k.upload(0, k, &self.stream).unwrap();
            tensors.v.upload(0, v, &self.stream).unwrap();
            tensors.q.upload(0, q, &self.stream).unwrap();
            tensors.out.fill_bytes(u8::MAX, &self.stream).unwrap();
            tensors.lse.fill_bytes(u8::MAX, &self.stream).unwrap();
        }
    }

    /// Writes a batch's keys and values, and reads nothing.
    pub(crate) fn append(&mut self, batch: &Batch) -> Result<(), CacheError> {
        let (rows, width, stream) = (batch.rows(), self.kv(), self.stream.raw());
        for (layer, tensors) in (0..).zip(&self.layers) {
            let mut kv =
                Kv::new(at(&tensors.k, rows * width, stream), at(&tensors.v, rows * width, stream));
            kv.rope = self.table.as_ref();
            self.cache.append(layer, batch, kv)?;
        }
        Ok(())
    }

    /// All scores of some nodes' full pages.
    pub(crate) fn scores(&mut self, nodes: &[NodeKey]) -> Vec<u32> {
        let heads = (0..LAYERS).flat_map(|layer| (0..KV_HEADS as u32).map(move |h| (layer, h)));
        let all = nodes.iter().flat_map(|&node| heads.clone().map(move |(l, h)| (node, l, h)));
        let read = |(node, layer, head)| self.cache.scores(node, layer, head).unwrap();
        all.flat_map(read).flatten().collect()
    }

    /// Waits for the caller's stream alone, and compares the results of the step with the definition.
    pub(crate) fn check(&self, batch: &Batch, inputs: &Inputs, context: &str) {
        let rows = batch.rows();
        for (layer, tensors) in self.layers.iter().enumerate() {
            let mut out = vec![bf16::ZERO; rows * self.q()];
            let mut lse = vec![0.0; rows * KV_HEADS * GROUP];
            tensors.out.read(0, &mut out, &self.stream).unwrap();
            tensors.lse.read(0, &mut lse, &self.stream).unwrap();
            self.compare(batch, layer, &inputs.0[layer][2], &out, &lse, context);
        }
    }

    fn compare(
        &self,
        batch: &Batch,
        layer: usize,
        q: &[bf16],
        out: &[bf16],
        lse: &[f32],
        context: &str,
    ) {
        let ends = batch.nodes().iter().flat_map(|&(node, tokens)| {
            (0..tokens as usize).map(move |row| (node, tokens as usize - 1 - row))
        });
        for (row, (node, unseen)) in ends.enumerate() {
            let mut path = Vec::new();
            let mut next = Some(node);
            while let Some(key) = next {
                let (parent, tokens) = &self.nodes[&key];
                let seen = tokens.len() - if key == node { unseen } else { 0 };
                path.extend(&tokens[..seen]);
                next = *parent;
            }
            for head in 0..KV_HEADS * GROUP {
                let dims = head / GROUP * self.dim..(head / GROUP + 1) * self.dim;
                let at = (row * KV_HEADS * GROUP + head) * self.dim;
                let q = &q[at..at + self.dim];
                let logit = |token: &&Token| {
                    let k = &token[layer][0][dims.clone()];
                    q.iter().zip(k).map(|(q, k)| q.to_f64() * k).sum::<f64>()
                        / (self.dim as f64).sqrt()
                };
                let weights: Vec<f64> = path.iter().map(|token| logit(token).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let what = format!("{context}: layer {layer}, row {row}, head {head}");
                let found = f64::from(lse[row * KV_HEADS * GROUP + head]);
                assert!(
                    (found - sum.ln()).abs() < 2e-2,
                    "{what}: LSE {found}, {} expected",
                    sum.ln()
                );
                for dim in 0..self.dim {
                    let value = |token: &Token| token[layer][1][dims.start + dim];
                    let right =
                        weights.iter().zip(&path).map(|(w, token)| w * value(token)).sum::<f64>()
                            / sum;
                    let found = out[at + dim].to_f64();
                    assert!(
                        (found - right).abs() < 2e-2,
                        "{what}, dim {dim}: {found}, {right} expected"
                    );
                }
            }
        }
    }

    /// Compares attention of the last token of each of `nodes` with the definition, rows in the host's memory.
    pub(crate) fn verify(&mut self, nodes: &[NodeKey], context: &str) {
        let each: Vec<_> = nodes.iter().map(|&node| (node, 1)).collect();
        let batch = self.cache.batch_held(&each).unwrap();
        for layer in 0..LAYERS {
            let elements = nodes.len() * self.q();
            let q = self.values(elements);
            let mut out = vec![bf16::NAN; q.len()];
            let mut lse = vec![f32::NAN; nodes.len() * KV_HEADS * GROUP];
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(layer, &batch, &q, results).unwrap();
            self.compare(&batch, layer as usize, &q, &out, &lse, context);
        }
    }

    /// Foreign pages with K and V of new tokens that a node is to hold, one after the other: `[layer][k, v]`.
    pub(crate) fn foreign(&mut self, node: NodeKey, tokens: usize) -> Vec<[Vec<bf16>; 2]> {
        let elements = tokens * self.kv();
        let layers = (0..LAYERS).map(|_| [(); 2].map(|()| self.values(elements)));
        let layers: Vec<[Vec<bf16>; 2]> = layers.collect();
        for token in 0..tokens {
            let of = |values: &Vec<bf16>| {
                let width = values.len() / tokens;
                let row = values[token * width..][..width].iter();
                row.map(|value| value.to_f64()).collect::<Vec<_>>()
            };
            let token = layers.iter().map(|[k, v]| [of(k), of(v)]).collect();
            self.nodes.get_mut(&node).unwrap().1.push(token);
        }
        layers
    }

    /// K and V of the last tokens that a node should hold: `[layer][k, v]`.
    pub(crate) fn held(&self, node: NodeKey, tokens: usize) -> Vec<[Vec<bf16>; 2]> {
        let all = &self.nodes[&node].1;
        let last = &all[all.len() - tokens..];
        let rows = |layer: usize, kv: usize| {
            let values = last.iter().flat_map(|token| &token[layer][kv]);
            values.map(|&value| bf16::from_f64(value)).collect()
        };
        (0..LAYERS as usize).map(|layer| [rows(layer, 0), rows(layer, 1)]).collect()
    }
}

/// Each node with its newest token.
pub(crate) fn ones(nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    nodes.iter().map(|&node| (node, 1)).collect()
}

fn at<T: deft::KvElement>(
    buffer: &DeviceBuffer<T>,
    len: usize,
    stream: RawStream,
) -> DeviceRows<T> {
    assert!(len <= buffer.len());
    // SAFETY: the buffer lives as long as the world and its graphs, and is used on this stream.
    unsafe { DeviceRows::new(buffer.pointer(), len, stream) }
}
