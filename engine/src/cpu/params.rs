//! Weights as the CPU multiplies with them: matrices as they are stored, norms in f32.

use super::matmul::Matrix;
use crate::config::LlamaConfig;
use crate::weights::{LayerTensor, Tensor, Weights, WeightsError};

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    /// `None`: the embedding's.
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
    /// Reads all tensors; `progress` hears how many parameters of how many have been read.
    pub(super) fn load(
        weights: &Weights,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WeightsError> {
        let config = weights.config();
        let mut loader = Loader { weights, done: 0, progress };
        let embedding = loader.matrix(Tensor::Embedding)?;
        let layers = (0..config.layers).map(|layer| loader.layer(layer));
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: loader.values(Tensor::FinalNorm)?,
            untied_head: untied(config).map(|head| loader.matrix(head)).transpose()?,
        })
    }

    pub(super) fn head(&self) -> &Matrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }
}

fn untied(config: &LlamaConfig) -> Option<Tensor> {
    (!config.tied_embeddings).then_some(Tensor::Head)
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
        let shape = self.weights.shape(tensor);
        let format = self.weights.format(tensor);
        let [rows, columns] = shape;
        let row_bytes = columns / format.block_elements() * format.block_bytes();
        let mut bytes = vec![0; rows * row_bytes];
        self.weights.read_stored(tensor, 0..rows, &mut bytes)?;
        self.count(rows * columns);
        Ok(Matrix::new(shape, format, bytes))
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
