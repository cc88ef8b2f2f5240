//! A plain Llama in f64, one path at a time: dense causal attention, no cache, no pages.

use deft_engine::{LayerTensor, LlamaConfig, RopeScaling, Tensor, Weights};

/// A small model with every feature: grouped queries, scaled rotary embedding, odd widths.
pub(crate) fn tiny(tied_embeddings: bool) -> LlamaConfig {
    LlamaConfig {
        layers: 2,
        hidden: 40,
        ffn: 56,
        q_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 97,
        context: 300,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 4.0,
            low: 1.0,
            high: 4.0,
            original_context: 128,
        },
        tied_embeddings,
        variant: deft_engine::Variant::LLAMA,
    }
}

/// Tokens from a seed.
pub(crate) fn tokens(seed: u32, count: usize) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % 97
    };
    std::iter::repeat_with(next).take(count).collect()
}

type Matrix = Vec<Vec<f64>>;

/// The model in f64.
pub(crate) struct Reference {
    config: LlamaConfig,
    embedding: Matrix,
    head: Matrix,
    final_norm: Vec<f64>,
    layers: Vec<Vec<Matrix>>,
}

impl Reference {
    pub(crate) fn new(weights: &Weights) -> Self {
        let layer =
            |layer| LayerTensor::ALL.map(|tensor| read(weights, Tensor::Layer(layer, tensor)));
        Self {
            config: weights.config().clone(),
            embedding: read(weights, Tensor::Embedding),
            head: read(weights, Tensor::Head),
            final_norm: read(weights, Tensor::FinalNorm).remove(0),
            layers: (0..weights.config().layers).map(|index| layer(index).to_vec()).collect(),
        }
    }

    /// Logits after each token of a path.
    pub(crate) fn logits(&self, path: &[u32]) -> Matrix {
        let mut states: Matrix =
            path.iter().map(|&token| self.embedding[token as usize].clone()).collect();
        for layer in &self.layers {
            let [norm, query, key, value, output, ffn_norm, gate, up, down] = &layer[..] else {
                unreachable!("nine tensors a layer");
            };
            let normed: Matrix = states.iter().map(|x| self.norm(x, &norm[0])).collect();
            let project =
                |matrix: &Matrix| normed.iter().map(|x| apply(matrix, x)).collect::<Matrix>();
            let (mut q, mut k, v) = (project(query), project(key), project(value));
            for (position, (q, k)) in q.iter_mut().zip(&mut k).enumerate() {
                self.rotate(q, position);
                self.rotate(k, position);
            }
            for at in 0..states.len() {
                let attended = self.attend(&q[at], &k[..=at], &v[..=at]);
                add(&mut states[at], &apply(output, &attended));
                let normed = self.norm(&states[at], &ffn_norm[0]);
                let gates = apply(gate, &normed).into_iter().zip(apply(up, &normed));
                let inner: Vec<f64> = gates.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(&mut states[at], &apply(down, &inner));
            }
        }
        let normed = states.iter().map(|x| self.norm(x, &self.final_norm));
        normed.map(|x| apply(&self.head, &x)).collect()
    }

    fn norm(&self, x: &[f64], gain: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(self.config.rms_eps)).sqrt();
        x.iter().zip(gain).map(|(x, gain)| x / root * gain).collect()
    }

    /// As transformers' `rotate_half`, with Llama 3.1's scaling by wavelength.
    fn rotate(&self, heads: &mut [f64], position: usize) {
        let width = self.config.head_dim as usize;
        let RopeScaling::Llama3 { factor, low, high, original_context } = self.config.rope_scaling
        else {
            panic!("the tiny model is scaled");
        };
        for head in heads.chunks_mut(width) {
            let before = head.to_vec();
            for dim in 0..width {
                let pair = dim % (width / 2);
                let plain = self.config.rope_theta.powf(-2.0 * pair as f64 / width as f64);
                let wavelength = 2.0 * std::f64::consts::PI / plain;
                let original = f64::from(original_context);
                let frequency = if wavelength > original / low {
                    plain / factor
                } else if wavelength < original / high {
                    plain
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                };
                let angle = position as f64 * frequency;
                let half = width / 2;
                let turned = if dim < half { -before[dim + half] } else { before[dim - half] };
                head[dim] = before[dim] * angle.cos() + turned * angle.sin();
            }
        }
    }

    fn attend(&self, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let width = self.config.head_dim as usize;
        let group = (self.config.q_heads / self.config.kv_heads) as usize;
        let mut out = Vec::new();
        for (head, q) in q.chunks(width).enumerate() {
            let begin = head / group * width;
            let of_head = begin..begin + width;
            let scores = keys.iter().map(|k| dot(q, &k[of_head.clone()]) / (width as f64).sqrt());
            let weights: Vec<f64> = scores.map(f64::exp).collect();
            let sum: f64 = weights.iter().sum();
            out.extend(of_head.map(|dim| {
                let products = weights.iter().zip(values).map(|(weight, v)| weight * v[dim]);
                products.sum::<f64>() / sum
            }));
        }
        out
    }
}

fn read(weights: &Weights, tensor: Tensor) -> Matrix {
    let [rows, columns] = weights.shape(tensor);
    let mut values = vec![f32::NAN; rows * columns];
    weights.read_f32(tensor, 0..rows, &mut values).unwrap();
    let rows = values.chunks(columns);
    rows.map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

fn apply(matrix: &Matrix, x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Asserts that rows of logits are those expected, each within 2e-5 of its largest entry.
pub(crate) fn assert_rows<'a>(found: &[f32], expected: impl IntoIterator<Item = &'a Vec<f64>>) {
    let expected: Vec<_> = expected.into_iter().collect();
    let width = expected[0].len();
    assert_eq!(found.len(), expected.len() * width);
    for (row, (found, expected)) in found.chunks(width).zip(expected).enumerate() {
        let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / largest;
            assert!(error < 2e-5, "row {row}, token {at}: {found} is not {expected}, {error}");
        }
    }
}
