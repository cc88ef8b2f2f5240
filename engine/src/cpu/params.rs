//! Weights as the CPU multiplies with them: matrices as they are stored, norms in f32.

use std::ops::Range;

use super::matmul::Matrix;
use crate::ranks::Shard;
use crate::weights::{LayerTensor, Tensor, Weights, WeightsError};

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    /// `[the rank's entries of the vocabulary, hidden]`; `None`: the embedding's.
    untied_head: Option<Matrix>,
}

/// Weights of a layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Matrix,
    pub(super) key: Matrix,
    pub(super) value: Matrix,
    pub(super) output: Matrix,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
    /// Of query, key and value.
    pub(super) biases: Option<[Vec<f32>; 3]>,
    /// Of each head's query and key.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    /// After attention and after the feed-forward part.
    pub(super) post_norms: Option<[Vec<f32>; 2]>,
}

impl Params {
    /// Reads all tensors of a rank; `progress` hears how many parameters of how many have been read.
    pub(super) fn load(
        weights: &Weights,
        shard: &Shard,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WeightsError> {
        let layers = 0..weights.config().layers;
        let mut loader = Loader { weights, done: 0, progress };
        let embedding = loader.matrix(Tensor::Embedding)?;
        let layers = layers.map(|layer| loader.layer(layer));
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: loader.values(Tensor::FinalNorm)?,
            untied_head: loader.head(shard)?,
        })
    }

    pub(super) fn head(&self) -> &Matrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }
}

struct Loader<'a> {
    weights: &'a Weights,
    done: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Loader<'_> {
    fn values(&mut self, tensor: Tensor) -> Result<Vec<f32>, WeightsError> {
        let [rows, columns] = self.weights.shape(tensor);
        let mut values = vec![0.0; rows * columns];
        self.weights.read_f32(tensor, 0..rows, &mut values)?;
        self.count(values.len());
        Ok(values)
    }

    fn count(&mut self, parameters: usize) {
        self.done += parameters as u64;
        (self.progress)(self.done, self.weights.config().parameters());
    }

    fn matrix(&mut self, tensor: Tensor) -> Result<Matrix, WeightsError> {
        let [rows, _] = self.weights.shape(tensor);
        self.rows(tensor, 0..rows)
    }

    fn rows(&mut self, tensor: Tensor, rows: Range<usize>) -> Result<Matrix, WeightsError> {
        let [_, columns] = self.weights.shape(tensor);
        let format = self.weights.format(tensor);
        let row_bytes = columns / format.block_elements() * format.block_bytes();
        let shape = [rows.len(), columns];
        let mut bytes = vec![0; rows.len() * row_bytes];
        self.weights.read_stored(tensor, rows, &mut bytes)?;
        self.count(bytes.len() / row_bytes * columns);
        Ok(Matrix::new(shape, format, bytes))
    }

    /// The rank's rows of the head; none where they are all of the embedding.
    fn head(&mut self, shard: &Shard) -> Result<Option<Matrix>, WeightsError> {
        if self.weights.config().tied_embeddings && shard.ranks() == 1 {
            return Ok(None);
        }
        let Range { start, end } = shard.vocabulary();
        self.rows(Tensor::Head, start as usize..end as usize).map(Some)
    }

    fn layer(&mut self, layer: u32) -> Result<Layer, WeightsError> {
        let of = |tensor| Tensor::Layer(layer, tensor);
        let variant = &self.weights.config().variant;
        Ok(Layer {
            attention_norm: self.values(of(LayerTensor::AttentionNorm))?,
            query: self.matrix(of(LayerTensor::Query))?,
            key: self.matrix(of(LayerTensor::Key))?,
            value: self.matrix(of(LayerTensor::Value))?,
            output: self.matrix(of(LayerTensor::Output))?,
            ffn_norm: self.values(of(LayerTensor::FfnNorm))?,
            gate: self.matrix(of(LayerTensor::Gate))?,
            up: self.matrix(of(LayerTensor::Up))?,
            down: self.matrix(of(LayerTensor::Down))?,
            biases: self.some(
                variant.qkv_bias,
                [LayerTensor::QueryBias, LayerTensor::KeyBias, LayerTensor::ValueBias].map(of),
            )?,
            head_norms: self
                .some(variant.qk_norm, [LayerTensor::QueryNorm, LayerTensor::KeyNorm].map(of))?,
            post_norms: self.some(
                variant.post_norms,
                [LayerTensor::AttentionPostNorm, LayerTensor::FfnPostNorm].map(of),
            )?,
        })
    }

    /// Vectors of a layer that some models have.
    fn some<const N: usize>(
        &mut self,
        are_there: bool,
        tensors: [Tensor; N],
    ) -> Result<Option<[Vec<f32>; N]>, WeightsError> {
        if !are_there {
            return Ok(None);
        }
        let mut all = [const { Vec::new() }; N];
        for (values, tensor) in all.iter_mut().zip(tensors) {
            *values = self.values(tensor)?;
        }
        Ok(Some(all))
    }
}
