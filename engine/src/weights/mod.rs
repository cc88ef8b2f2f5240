//! A model's weights, one tensor at a time, wherever they come from.

pub(crate) mod blocks;
mod error;
mod format;
pub(crate) mod names;
pub(crate) mod stored;
mod synthetic;

use std::ops::Range;
use std::sync::Arc;

use deft::KvElement;
use rayon::prelude::*;

pub use self::error::WeightsError;
pub use self::format::Format;
pub(crate) use self::format::WithBlock;

use crate::config::{ConfigError, LlamaConfig};

/// A tensor of a model, by what it is for.
///
/// Matrices are `[rows, columns]`, a row for each output: `y[r] = sum_c w[r][c] x[c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tensor {
    /// `[vocabulary, hidden]`: a token's first state.
    Embedding,
    /// `[1, hidden]`: RMSNorm before the head.
    FinalNorm,
    /// `[vocabulary, hidden]`; the embedding where that is tied.
    Head,
    /// A tensor of the layer with this index.
    Layer(u32, LayerTensor),
}

/// A tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// `[1, hidden]`: RMSNorm before attention.
    AttentionNorm,
    /// `[q_heads x head_dim, hidden]`; within a head dim `d` turns with dim `d + head_dim / 2`.
    Query,
    /// `[kv_heads x head_dim, hidden]`, its dims as the queries'.
    Key,
    /// `[kv_heads x head_dim, hidden]`.
    Value,
    /// `[hidden, q_heads x head_dim]`.
    Output,
    /// `[1, hidden]`: RMSNorm before the feed-forward part.
    FfnNorm,
    /// `[ffn, hidden]`: what goes through SiLU.
    Gate,
    /// `[ffn, hidden]`: what that is multiplied with.
    Up,
    /// `[hidden, ffn]`.
    Down,
    /// `[1, q_heads x head_dim]`: added to queries.
    QueryBias,
    /// `[1, kv_heads x head_dim]`: added to keys.
    KeyBias,
    /// `[1, kv_heads x head_dim]`: added to values.
    ValueBias,
    /// `[1, head_dim]`: RMSNorm of each head's query.
    QueryNorm,
    /// `[1, head_dim]`: RMSNorm of each head's key.
    KeyNorm,
    /// `[1, hidden]`: RMSNorm of what attention gives.
    AttentionPostNorm,
    /// `[1, hidden]`: RMSNorm of what the feed-forward part gives.
    FfnPostNorm,
}

impl LayerTensor {
    /// Those of a Llama model, in the order of their use.
    pub const ALL: [Self; 9] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Those of a model: Llama's first.
    pub fn of(config: &LlamaConfig) -> impl Iterator<Item = Self> + Clone + use<> {
        let variant = &config.variant;
        let more = [
            (Self::QueryBias, variant.qkv_bias),
            (Self::KeyBias, variant.qkv_bias),
            (Self::ValueBias, variant.qkv_bias),
            (Self::QueryNorm, variant.qk_norm),
            (Self::KeyNorm, variant.qk_norm),
            (Self::AttentionPostNorm, variant.post_norms),
            (Self::FfnPostNorm, variant.post_norms),
        ];
        let more = more.into_iter().filter(|&(_, is)| is);
        Self::ALL.into_iter().chain(more.map(|(tensor, _)| tensor))
    }

    fn is_norm(self) -> bool {
        use LayerTensor::{
            AttentionNorm, AttentionPostNorm, FfnNorm, FfnPostNorm, KeyNorm, QueryNorm,
        };
        matches!(
            self,
            AttentionNorm | AttentionPostNorm | FfnNorm | FfnPostNorm | KeyNorm | QueryNorm
        )
    }
}

impl Tensor {
    /// Every tensor of a model, in the order of their use. A tied head is not listed.
    pub fn all(config: &LlamaConfig) -> impl Iterator<Item = Self> + use<> {
        let layers = 0..config.layers;
        let head = (!config.tied_embeddings).then_some(Self::Head);
        let of_layer = LayerTensor::of(config);
        let of_layer = move |layer| of_layer.clone().map(move |tensor| Self::Layer(layer, tensor));
        std::iter::once(Self::Embedding)
            .chain(layers.flat_map(of_layer))
            .chain([Self::FinalNorm])
            .chain(head)
    }

    /// Whether it is what a norm multiplies with.
    pub(crate) fn is_norm(self) -> bool {
        match self {
            Self::FinalNorm => true,
            Self::Layer(_, tensor) => tensor.is_norm(),
            Self::Embedding | Self::Head => false,
        }
    }

    /// `[rows, columns]`.
    pub fn shape(self, config: &LlamaConfig) -> [usize; 2] {
        let (hidden, ffn) = (config.hidden, config.ffn);
        let shape = match self {
            Self::Embedding | Self::Head => [config.vocabulary, hidden],
            Self::FinalNorm => [1, hidden],
            Self::Layer(_, tensor) => match tensor {
                LayerTensor::QueryNorm | LayerTensor::KeyNorm => [1, config.head_dim],
                LayerTensor::QueryBias => [1, config.q_width()],
                LayerTensor::KeyBias | LayerTensor::ValueBias => [1, config.kv_width()],
                norm if norm.is_norm() => [1, hidden],
                LayerTensor::Query => [config.q_width(), hidden],
                LayerTensor::Key | LayerTensor::Value => [config.kv_width(), hidden],
                LayerTensor::Output => [hidden, config.q_width()],
                LayerTensor::Gate | LayerTensor::Up => [ffn, hidden],
                _ => [hidden, ffn],
            },
        };
        shape.map(|size| size as usize)
    }
}

/// Where weights come from.
///
/// Arguments are those of [`Weights::read_f32`], checked: `rows` are within the tensor, `out` is `[rows,
/// columns]`, and the tensor is none that is tied to another.
pub(crate) trait Source: std::fmt::Debug + Send + Sync {
    /// Writes rows of `tensor`, as f32.
    fn read(&self, tensor: Tensor, rows: Range<usize>, out: &mut [f32])
    -> Result<(), WeightsError>;

    /// How `tensor` is stored.
    fn format(&self, _tensor: Tensor) -> Format {
        Format::F32
    }

    /// Writes rows of `tensor` as they are stored.
    fn read_stored(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        self.read_as_f32(tensor, rows, out)
    }

    /// Writes rows of `tensor` as they are stored in [`Format::F32`].
    fn read_as_f32(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let mut values = vec![0.0_f32; out.len() / size_of::<f32>()];
        self.read(tensor, rows, &mut values)?;
        for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
            *out = value.to_le_bytes();
        }
        Ok(())
    }
}

/// A model's weights: read row by row in the type that the reader wants, nothing is kept. Cloning shares the source.
#[derive(Clone, Debug)]
pub struct Weights {
    config: LlamaConfig,
    source: Arc<dyn Source>,
}

impl Weights {
    /// Small random weights, uniform with variance `1 / columns` (norms: 1), the same for the same seed.
    /// They are made as they are read.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn synthetic(config: LlamaConfig, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        let source = Arc::new(synthetic::Synthetic::new(config.clone(), seed));
        Ok(Self::of(config, source))
    }

    /// Weights of a model of a valid shape.
    pub(crate) fn of(config: LlamaConfig, source: Arc<dyn Source>) -> Self {
        Self { config, source }
    }

    /// Where they come from.
    pub(crate) fn source(&self) -> Arc<dyn Source> {
        self.source.clone()
    }

    /// The same with the first `layers` layers alone.
    ///
    /// # Errors
    /// [`ConfigError`] for none, or more than there are.
    pub fn with_layers(mut self, layers: u32) -> Result<Self, ConfigError> {
        let most = self.config.layers;
        if layers == 0 || layers > most {
            return Err(ConfigError {
                field: "layers",
                value: layers.to_string(),
                expected: format!("between 1 and the model's own, {most}"),
            });
        }
        self.config.layers = layers;
        Ok(self)
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// `[rows, columns]` of `tensor`.
    pub fn shape(&self, tensor: Tensor) -> [usize; 2] {
        tensor.shape(&self.config)
    }

    /// Writes rows `rows` of `tensor` to `out`, `[rows, columns]`, on all threads of rayon's pool.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn read_f32(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let [_, columns] = self.shape(tensor);
        self.read_blocks(tensor, rows, columns, out, |rows, out| {
            self.source.read(self.untied(tensor), rows, out)
        })
    }

    /// How `tensor` is stored.
    pub fn format(&self, tensor: Tensor) -> Format {
        self.source.format(self.untied(tensor))
    }

    /// As [`Weights::read_f32`], as it is stored: `out` is `[rows, bytes of a row]`, in [`Weights::format`].
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn read_stored(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let format = self.format(tensor);
        let blocks = self.shape(tensor)[1] / format.block_elements();
        let row_bytes = blocks * format.block_bytes();
        self.read_blocks(tensor, rows, row_bytes, out, |rows, out| {
            self.source.read_stored(self.untied(tensor), rows, out)
        })
    }

    /// As [`Weights::read_f32`], rounded to `T`: [`bf16`](deft::bf16), say, or [`f16`](deft::f16).
    ///
    /// # Errors
    /// [`WeightsError`]; [`WeightsError::Range`] for a weight that is finite and would not be so in `T`.
    pub fn read_as<T: KvElement>(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [T],
    ) -> Result<(), WeightsError> {
        let [_, columns] = self.shape(tensor);
        self.read_blocks(tensor, rows, columns, out, |rows, out| {
            let mut wide = vec![0.0; out.len()];
            self.source.read(self.untied(tensor), rows, &mut wide)?;
            for (narrow, wide) in out.iter_mut().zip(wide) {
                *narrow = T::from_f32(wide);
                if wide.is_finite() && !narrow.to_f32().is_finite() {
                    return Err(WeightsError::range::<T>(tensor, wide));
                }
            }
            Ok(())
        })
    }

    /// The tensor whose weights `tensor` has.
    fn untied(&self, tensor: Tensor) -> Tensor {
        match tensor {
            Tensor::Head if self.config.tied_embeddings => Tensor::Embedding,
            other => other,
        }
    }

    /// Checks the arguments of a read, and does it in parallel by blocks of rows, `width` elements of `out` each.
    fn read_blocks<T: Send>(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        width: usize,
        out: &mut [T],
        read: impl Fn(Range<usize>, &mut [T]) -> Result<(), WeightsError> + Sync,
    ) -> Result<(), WeightsError> {
        const BLOCK_ELEMENTS: usize = 1 << 16;
        if let Tensor::Layer(layer, _) = tensor
            && layer >= self.config.layers
        {
            let layers = self.config.layers;
            return Err(WeightsError::Layer { layer, layers });
        }
        let [height, _] = self.shape(tensor);
        if rows.start > rows.end || rows.end > height {
            return Err(WeightsError::Rows {
                tensor,
                begin: rows.start,
                end: rows.end,
                rows: height,
            });
        }
        if out.len() != rows.len() * width {
            return Err(WeightsError::Length {
                tensor,
                len: out.len(),
                expected: rows.len() * width,
            });
        }
        let height = (BLOCK_ELEMENTS / width).max(1);
        let blocks = out.par_chunks_mut(height * width).enumerate();
        blocks.try_for_each(|(block, out)| {
            let begin = rows.start + block * height;
            read(begin..begin + out.len() / width, out)
        })
    }
}

#[cfg(test)]
mod tests;
