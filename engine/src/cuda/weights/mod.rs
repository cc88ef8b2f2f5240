//! A model's weights in device memory, f16 or bf16; projections that share their input lie together.

mod padded;
mod source;

use self::padded::{Half, on_device};
use self::source::{Maker, Reader, some};
use super::ops::ModelOps;
use deft::attention::AttentionParams;
use deft::cuda::{CudaDevice, CudaError, DeviceBuffer, DevicePtr, Stream};
use deft::{DType, RotaryTable};

use super::CudaModelError;
use crate::ranks::Shard;
use crate::{ConfigError, LlamaConfig, Tensor, Turn, Variant, Weights, WeightsError};

/// A model's weights on a device.
#[derive(Debug)]
pub struct CudaWeights {
    /// The shape of what the rank computes, with heads that there are kernels for.
    part: LlamaConfig,
    shard: Shard,
    dtype: DType,
    /// `[vocabulary, hidden]`.
    pub(super) embedding: DeviceBuffer<u16>,
    /// `[hidden]`.
    pub(super) final_norm: DeviceBuffer<f32>,
    /// `[the rank's entries of the vocabulary, hidden]`; none where they are rows of the embedding.
    head: Option<DeviceBuffer<u16>>,
    layers: Vec<LayerWeights>,
}

/// A layer's weights. Matrices are `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct LayerWeights {
    /// `[hidden]`.
    pub(super) attention_norm: DeviceBuffer<f32>,
    /// Queries, keys and values: `[(q_heads + 2 kv_heads) head_dim, hidden]`.
    pub(super) qkv: DeviceBuffer<u16>,
    /// `[q_heads + 2 kv_heads, head_dim]`, where queries, keys and values have biases.
    pub(super) qkv_bias: Option<DeviceBuffer<f32>>,
    /// `[2, head_dim]`: gains of queries and of keys, where these are normed.
    pub(super) head_norms: Option<DeviceBuffer<f32>>,
    /// `[hidden, q_heads head_dim]`.
    pub(super) output: DeviceBuffer<u16>,
    /// `[hidden]`.
    pub(super) ffn_norm: DeviceBuffer<f32>,
    /// Gate, then up: `[2 ffn, hidden]`.
    pub(super) gate_up: DeviceBuffer<u16>,
    /// `[hidden, ffn]`.
    pub(super) down: DeviceBuffer<u16>,
}

impl CudaWeights {
    /// Reads `weights`, rounded to `dtype`, tensor by tensor.
    ///
    /// [`DType::F16`] is the closer to f32, with 11 bits of a number where [`DType::Bf16`] has 8, and holds up to
    /// 65,504, weights and activations alike; `Bf16` has the range of f32.
    ///
    /// # Errors
    /// [`CudaModelError::Weights`], with [`WeightsError::Range`](crate::WeightsError::Range) for a weight that f16
    /// does not hold; [`CudaError::DType`] for a type that has not 16 bits; out of device memory.
    pub fn read(
        device: &CudaDevice,
        weights: &Weights,
        dtype: DType,
    ) -> Result<Self, CudaModelError> {
        let shard = Shard::all(weights.config());
        Self::read_shard(device, weights, dtype, shard)
    }

    /// One rank's part of `weights`, read in the same way: whole columns and rows of matrices, the embedding all.
    ///
    /// # Errors
    /// As [`CudaWeights::read`].
    pub fn read_shard(
        device: &CudaDevice,
        weights: &Weights,
        dtype: DType,
        shard: Shard,
    ) -> Result<Self, CudaModelError> {
        if !matches!(dtype, DType::F16 | DType::Bf16) {
            return Err(CudaError::DType { dtype }.into());
        }
        let weights = &shard.weights(weights);
        let config = weights.config().clone();
        refuse_variants(&config)?;
        let stream = Stream::new(device)?;
        let half = Half::of(&config);
        let reader = Reader { device, weights, dtype, stream: &stream, half };
        let layers = (0..config.layers).map(|layer| reader.layer(layer));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            embedding: reader.matrix("embedding", &[Tensor::Embedding])?,
            final_norm: reader.vector("final norm", &[Tensor::FinalNorm])?,
            head: match config.tied_embeddings {
                true => None,
                false => Some(reader.rows("head", &[Tensor::Head], shard.vocabulary())?),
            },
            part: on_device(&config),
            shard,
            dtype,
        })
    }

    /// Random weights of `config`'s shape, made on the device: uniform with variance `1 / inputs`, norms 1, biases 0.
    /// Only `distinct_layers` layers are kept; layer `l` has the weights of layer `l % distinct_layers`, so
    /// that timings of a model that is larger than the device's memory can be taken. Heads that there are no kernels for are
    /// as large as they are kept.
    ///
    /// # Errors
    /// [`CudaModelError::Config`], [`CudaModelError::Option`], [`CudaError::DType`], or out of device memory.
    pub fn random(
        device: &CudaDevice,
        config: LlamaConfig,
        dtype: DType,
        distinct_layers: u32,
        seed: u64,
    ) -> Result<Self, CudaModelError> {
        config.validate()?;
        Self::random_shard(device, Shard::all(&config), dtype, distinct_layers, seed)
    }

    /// The same of one rank's part. Ranks have weights of their own: together they are no model that one rank could have
    /// made.
    ///
    /// # Errors
    /// As [`CudaWeights::random`].
    pub fn random_shard(
        device: &CudaDevice,
        shard: Shard,
        dtype: DType,
        distinct_layers: u32,
        seed: u64,
    ) -> Result<Self, CudaModelError> {
        let config = on_device(&shard.config());
        refuse_variants(&config)?;
        if distinct_layers == 0 || distinct_layers > config.layers {
            return Err(CudaModelError::Option {
                option: "distinct_layers",
                value: distinct_layers.to_string(),
                expected: format!("between 1 and the model's layers, {}", config.layers),
            });
        }
        let stream = Stream::new(device)?;
        let mut maker = Maker {
            device,
            ops: ModelOps::new(device, dtype, config.head_dim)?,
            stream: &stream,
            seed,
        };
        let head_rows = shard.vocabulary().len() as u32;
        let [hidden, ffn, q, kv] = [config.hidden, config.ffn, config.q_width(), config.kv_width()];
        let mut layers = Vec::new();
        for _ in 0..distinct_layers {
            layers.push(LayerWeights {
                attention_norm: maker.vector("attention norm", hidden, 1.0)?,
                qkv: maker.matrix("QKV weights", q + 2 * kv, hidden)?,
                qkv_bias: some(config.variant.qkv_bias, || {
                    maker.vector("QKV biases", q + 2 * kv, 0.0)
                })?,
                head_norms: some(config.variant.qk_norm, || {
                    maker.vector("query and key norms", 2 * config.head_dim, 1.0)
                })?,
                output: maker.matrix("output weights", hidden, q)?,
                ffn_norm: maker.vector("FFN norm", hidden, 1.0)?,
                gate_up: maker.matrix("gate and up weights", 2 * ffn, hidden)?,
                down: maker.matrix("down weights", hidden, ffn)?,
            });
        }
        let random = Self {
            layers,
            embedding: maker.matrix("embedding", config.vocabulary, hidden)?,
            final_norm: maker.vector("final norm", hidden, 1.0)?,
            head: match config.tied_embeddings {
                true => None,
                false => Some(maker.matrix("head", head_rows, hidden)?),
            },
            part: config,
            shard,
            dtype,
        };
        stream.synchronize()?;
        Ok(random)
    }

    /// The model's shape, of all ranks.
    pub fn config(&self) -> &LlamaConfig {
        self.shard.whole()
    }

    /// Which part of the model they are.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The shape of that part as the device computes it: heads are as large as kernels are for, the vocabulary is the
    /// model's.
    pub(super) fn part(&self) -> &LlamaConfig {
        &self.part
    }

    /// What `q k` is multiplied by.
    pub(super) fn attention_scale(&self) -> f32 {
        AttentionParams::new(self.config().head_dim).scale
    }

    /// What is added to the mean of squares of a head as the device has it.
    pub(super) fn head_eps(&self) -> f32 {
        let Half { own, padded } = Half::of(self.config());
        self.part.rms_eps * (own as f32 / padded as f32)
    }

    /// [`LlamaConfig::rotary_table`] for heads as the device has them: what is padded does not turn.
    pub(super) fn rotary_table(&self, positions: u32) -> Result<RotaryTable, ConfigError> {
        let own = self.shard.config();
        own.rotary_table_of(self.part.head_dim, positions)
    }

    /// The type of matrices; norms are f32.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Layers whose weights are there.
    pub fn distinct_layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of device memory.
    pub fn memory_bytes(&self) -> u64 {
        let of_layer = |layer: &LayerWeights| {
            let some = [&layer.qkv_bias, &layer.head_norms].into_iter().flatten();
            let vectors = some.chain([&layer.attention_norm, &layer.ffn_norm]);
            let vectors: usize = vectors.map(DeviceBuffer::len).sum();
            let matrices = [&layer.qkv, &layer.output, &layer.gate_up, &layer.down];
            4 * vectors + 2 * matrices.map(DeviceBuffer::len).iter().sum::<usize>()
        };
        let layers: usize = self.layers.iter().map(of_layer).sum();
        let head = self.head.as_ref().map_or(0, DeviceBuffer::len);
        (layers + 2 * (self.embedding.len() + head) + 4 * self.final_norm.len()) as u64
    }

    /// Bytes that a pass reads: every layer's once, and the head's.
    pub fn pass_bytes(&self) -> u64 {
        let (all, kept) = (u64::from(self.part.layers), self.layers.len() as u64);
        let ends = 2 * self.embedding.len() + 4 * self.final_norm.len();
        let ends = ends + self.head.as_ref().map_or(0, |head| 2 * head.len());
        let layers = (self.memory_bytes() - ends as u64) / kept * all;
        let [rows, hidden] = self.head_shape().map(u64::from);
        layers + 2 * rows * hidden
    }

    pub(super) fn layer(&self, layer: u32) -> &LayerWeights {
        &self.layers[layer as usize % self.layers.len()]
    }

    /// The rank's rows of the head, of [`CudaWeights::head_shape`].
    pub(super) fn head(&self) -> DevicePtr {
        let skipped = u64::from(self.shard.vocabulary().start) * u64::from(self.part.hidden);
        let tied = || self.embedding.pointer().offset(2 * skipped);
        self.head.as_ref().map_or_else(tied, DeviceBuffer::pointer)
    }

    pub(super) fn head_shape(&self) -> [u32; 2] {
        [self.shard.vocabulary().len() as u32, self.part.hidden]
    }
}

/// Of what families do otherwise than Llama the kernels between the products know biases, norms of queries and keys, and
/// layers that do not turn.
fn refuse_variants(config: &LlamaConfig) -> Result<(), WeightsError> {
    let mut rest = Variant { qkv_bias: false, qk_norm: false, ..config.variant.clone() };
    rest.turns.retain(|&turn| turn != Turn::Not);
    let differences = rest.differences();
    if differences.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Config(ConfigError {
        field: "variant",
        value: differences.join(", "),
        expected: "without these on a GPU, which cannot do them yet; the CPU can".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_kernel_does_is_refused_by_name_and_nothing_else() {
        let mut config = LlamaConfig::smollm2_135m();
        assert!(refuse_variants(&config).is_ok());
        let qwen_and_smollm3 = Variant {
            qkv_bias: true,
            qk_norm: true,
            turns: vec![Turn::Model, Turn::Not],
            ..Variant::LLAMA
        };
        config.variant = qwen_and_smollm3.clone();
        assert!(refuse_variants(&config).is_ok());
        config.variant = Variant {
            logit_cap: Some(30.0),
            turns: vec![Turn::Not, Turn::Local],
            ..qwen_and_smollm3
        };
        assert_eq!(
            refuse_variants(&config).unwrap_err().to_string(),
            "variant is capped logits, layers that turn otherwise or not; it must be without these on a GPU, which \
             cannot do them yet; the CPU can"
        );
    }
}
