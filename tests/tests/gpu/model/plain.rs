//! A Llama in f64, a stage at a time: what each stage should make of what the one before it left.

use std::collections::HashMap;

use deft::{DType, bf16, f16};
use deft_engine::cuda::instrument::{Probe, Stage};
use deft_engine::{LayerTensor, LlamaConfig, Tensor, Turn, Weights};

/// The weights as a GPU has them: matrices rounded to its type.
pub(crate) struct Plain {
    config: LlamaConfig,
    dtype: DType,
    tensors: HashMap<Tensor, Vec<f64>>,
    frequencies: Vec<f64>,
}

/// What stages have left so far, `[rows, elements]` each.
#[derive(Default)]
pub(crate) struct States {
    x: Vec<f64>,
    normed: Vec<f64>,
    projected: Vec<f64>,
    queries: Vec<f64>,
    attended: Vec<f64>,
    gate_up: Vec<f64>,
    gated: Vec<f64>,
}

impl States {
    /// Takes over what a stage left.
    pub(crate) fn set(&mut self, stage: Stage, values: Vec<f64>) {
        let place = match stage {
            Stage::Embedded | Stage::AfterAttention | Stage::AfterFfn => &mut self.x,
            Stage::AttentionInput | Stage::FfnInput | Stage::HeadInput => &mut self.normed,
            Stage::Projected => &mut self.projected,
            Stage::Queries => &mut self.queries,
            Stage::Attended => &mut self.attended,
            Stage::GateUp => &mut self.gate_up,
            Stage::Gated => &mut self.gated,
            _ => return,
        };
        *place = values;
    }
}

/// Stages of a model of `layers` layers, in order.
pub(crate) fn stages(layers: u32) -> Vec<(u32, Stage)> {
    const OF_LAYER: [Stage; 9] = [
        Stage::AttentionInput,
        Stage::Projected,
        Stage::Queries,
        Stage::Attended,
        Stage::AfterAttention,
        Stage::FfnInput,
        Stage::GateUp,
        Stage::Gated,
        Stage::AfterFfn,
    ];
    let mut all = vec![(0, Stage::Embedded)];
    for layer in 0..layers {
        all.extend(OF_LAYER.map(|stage| (layer, stage)));
    }
    all.extend([Stage::HeadInput, Stage::Logits].map(|stage| (layers - 1, stage)));
    all
}

impl Plain {
    pub(crate) fn new(weights: &Weights, dtype: DType) -> Self {
        let config = weights.config().clone();
        let mut tensors = HashMap::new();
        for tensor in Tensor::all(&config).chain([Tensor::Head]) {
            let [rows, columns] = weights.shape(tensor);
            let mut values = vec![0.0; rows * columns];
            weights.read_f32(tensor, 0..rows, &mut values).unwrap();
            let values = values.into_iter().map(f64::from).collect();
            let is_norm = rows == 1;
            tensors.insert(tensor, if is_norm { values } else { round(dtype, values) });
        }
        Self { frequencies: config.rope_frequencies().unwrap(), config, dtype, tensors }
    }

    pub(crate) fn layers(&self) -> u32 {
        self.config.layers
    }

    pub(crate) fn head_dim(&self) -> u32 {
        self.config.head_dim
    }

    /// The type of weights, activations, K and V.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// What `stage` should leave of a path of `tokens`, from what was left before.
    pub(crate) fn stage(
        &self,
        layer: u32,
        stage: Stage,
        tokens: &[u32],
        before: &States,
    ) -> Vec<f64> {
        let of = |tensor| Tensor::Layer(layer, tensor);
        let q = self.config.q_width() as usize;
        match stage {
            Stage::Embedded => {
                let width = self.config.hidden as usize;
                let table = &self.tensors[&Tensor::Embedding];
                let rows = tokens.iter().map(|&token| &table[token as usize * width..][..width]);
                rows.flatten().copied().collect()
            }
            Stage::AttentionInput => self.norm(&before.x, of(LayerTensor::AttentionNorm)),
            Stage::Projected => {
                let parts = [LayerTensor::Query, LayerTensor::Key, LayerTensor::Value];
                let parts = parts.map(|part| self.apply(of(part), &before.normed));
                side_by_side(&parts, tokens.len())
            }
            Stage::Queries => {
                let rows = self.rows(&before.projected, tokens.len());
                let rows = rows.map(|row| self.heads(layer, row));
                rows.enumerate().flat_map(|(at, row)| self.rotated(layer, &row[..q], at)).collect()
            }
            Stage::Attended => self.attend(layer, before, tokens.len()),
            Stage::AfterAttention => {
                let added = self.apply(of(LayerTensor::Output), &before.attended);
                sum(&before.x, &added)
            }
            Stage::FfnInput => self.norm(&before.x, of(LayerTensor::FfnNorm)),
            Stage::GateUp => {
                let parts = [LayerTensor::Gate, LayerTensor::Up];
                let parts = parts.map(|part| self.apply(of(part), &before.normed));
                side_by_side(&parts, tokens.len())
            }
            Stage::Gated => {
                let rows = self.rows(&before.gate_up, tokens.len());
                rows.flat_map(|row| {
                    let (gate, up) = row.split_at(row.len() / 2);
                    let both = gate.iter().zip(up);
                    both.map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                })
                .collect()
            }
            Stage::AfterFfn => {
                let added = self.apply(of(LayerTensor::Down), &before.gated);
                sum(&before.x, &added)
            }
            Stage::HeadInput => self.norm(&before.x, Tensor::FinalNorm),
            _ => self.apply(Tensor::Head, &before.normed),
        }
    }

    fn rows<'a>(
        &self,
        values: &'a [f64],
        rows: usize,
    ) -> impl Iterator<Item = &'a [f64]> + use<'a> {
        values.chunks(values.len() / rows)
    }

    fn norm(&self, x: &[f64], gain: Tensor) -> Vec<f64> {
        let gain = &self.tensors[&gain];
        let rows = x.chunks(gain.len());
        rows.flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let root = (mean + f64::from(self.config.rms_eps)).sqrt();
            x.iter().zip(gain).map(move |(x, gain)| x / root * gain)
        })
        .collect()
    }

    /// `y = W x` for each row.
    fn apply(&self, matrix: Tensor, x: &[f64]) -> Vec<f64> {
        let [_, columns] = matrix.shape(&self.config);
        let weights = &self.tensors[&matrix];
        let rows = x.chunks(columns);
        let row = |x: &[f64]| -> Vec<f64> {
            let outputs = weights.chunks(columns);
            outputs.map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        rows.flat_map(row).collect()
    }

    /// A projected row with its biases, queries and keys normed head by head, where the model does that.
    fn heads(&self, layer: u32, row: &[f64]) -> Vec<f64> {
        use LayerTensor::{KeyBias, KeyNorm, QueryBias, QueryNorm, ValueBias};
        let of = |tensor| Tensor::Layer(layer, tensor);
        let biases = [QueryBias, KeyBias, ValueBias].into_iter();
        let biases: Vec<f64> =
            biases.filter_map(|bias| self.tensors.get(&of(bias))).flatten().copied().collect();
        let mut row = if biases.is_empty() { row.to_vec() } else { sum(row, &biases) };
        if self.config.variant.qk_norm {
            let (q, kv) = (self.config.q_width() as usize, self.config.kv_width() as usize);
            let mut normed = self.norm(&row[..q], of(QueryNorm));
            normed.extend(self.norm(&row[q..q + kv], of(KeyNorm)));
            row[..q + kv].copy_from_slice(&normed);
        }
        row
    }

    /// Heads of one row at a position: dim `d` turns with dim `d + head_dim / 2`.
    fn rotated(&self, layer: u32, heads: &[f64], position: usize) -> Vec<f64> {
        let mut out = heads.to_vec();
        if self.config.variant.turn(layer) == Turn::Not {
            return out;
        }
        let half = self.config.head_dim as usize / 2;
        for head in out.chunks_mut(2 * half) {
            for (pair, frequency) in self.frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (x, y) = (head[pair], head[pair + half]);
                head[pair] = x * cos - y * sin;
                head[pair + half] = y * cos + x * sin;
            }
        }
        out
    }

    /// Causal attention; keys are rounded in the cache.
    fn attend(&self, layer: u32, before: &States, rows: usize) -> Vec<f64> {
        let config = &self.config;
        let (q, kv) = (config.q_width() as usize, config.kv_width() as usize);
        let (dim, group) = (config.head_dim as usize, (config.q_heads / config.kv_heads) as usize);
        let projected = self.rows(&before.projected, rows);
        let projected: Vec<Vec<f64>> = projected.map(|row| self.heads(layer, row)).collect();
        let keys: Vec<Vec<f64>> = projected
            .iter()
            .enumerate()
            .map(|(at, row)| round(self.dtype, self.rotated(layer, &row[q..q + kv], at)))
            .collect();
        let mut out = Vec::with_capacity(rows * q);
        for (at, query) in before.queries.chunks(q).enumerate() {
            for (head, query) in query.chunks(dim).enumerate() {
                let of = head / group * dim;
                let scores = keys[..=at].iter().map(|key| {
                    let products = query.iter().zip(&key[of..of + dim]);
                    products.map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()
                });
                let scores: Vec<f64> = scores.collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..dim).map(|d| {
                    let values = projected[..=at].iter().map(|row| row[q + kv + of + d]);
                    weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total
                }));
            }
        }
        out
    }

    /// All stages of a path as a GPU without faults would leave them.
    pub(crate) fn run(&self, tokens: &[u32]) -> Vec<Probe> {
        let mut before = States::default();
        let all = stages(self.layers()).into_iter();
        all.map(|(layer, stage)| {
            let mut values = self.stage(layer, stage, tokens, &before);
            if is_half(stage) {
                values = round(self.dtype, values);
            }
            let width = values.len() / tokens.len();
            before.set(stage, values.clone());
            Probe {
                layer,
                stage,
                shape: [tokens.len() as u32, width as u32],
                values: values.into_iter().map(|x| x as f32).collect(),
            }
        })
        .collect()
    }
}

/// Whether a stage leaves 16 bits.
pub(crate) fn is_half(stage: Stage) -> bool {
    !matches!(stage, Stage::Embedded | Stage::AfterAttention | Stage::AfterFfn | Stage::Logits)
}

fn round(dtype: DType, values: Vec<f64>) -> Vec<f64> {
    // Through f32, in which weights are exact: `from_f64` drops the last 32 bits first, and then takes a value just
    // above the middle of two for the middle.
    let nearest = |x| match dtype {
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        _ => bf16::from_f32(x as f32).to_f64(),
    };
    values.into_iter().map(nearest).collect()
}

fn sum(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// Row `r` of all parts as one row.
fn side_by_side(parts: &[Vec<f64>], rows: usize) -> Vec<f64> {
    let row = |row: usize| {
        parts.iter().flat_map(move |part| {
            let width = part.len() / rows;
            part[row * width..(row + 1) * width].iter().copied()
        })
    };
    (0..rows).flat_map(row).collect()
}
