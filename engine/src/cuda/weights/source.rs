//! Where weights on a device come from: a file's, or random ones that are made there.

use std::ops::Range;

use deft::cuda::{CudaDevice, CudaError, DeviceBuffer, Stream};
use deft::{DType, KvElement, bf16, f16};

use super::LayerWeights;
use super::padded::Half;
use crate::cuda::CudaModelError;
use crate::cuda::ops::{FillRandom, ModelOps};
use crate::{LayerTensor, Tensor, Weights};

/// Elements that are read from the source at a time.
const BLOCK_ELEMENTS: usize = 16 << 20;

/// Weights from the host to the device.
pub(super) struct Reader<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) weights: &'a Weights,
    pub(super) dtype: DType,
    pub(super) stream: &'a Stream,
    pub(super) half: Half,
}

impl Reader<'_> {
    pub(super) fn layer(&self, layer: u32) -> Result<LayerWeights, CudaModelError> {
        use LayerTensor::{AttentionNorm, Down, FfnNorm, Gate, Key, Output, Query, Up, Value};
        use LayerTensor::{KeyBias, KeyNorm, QueryBias, QueryNorm, ValueBias};
        let of = |tensor| Tensor::Layer(layer, tensor);
        let variant = &self.weights.config().variant;
        Ok(LayerWeights {
            attention_norm: self.vector("attention norm", &[of(AttentionNorm)])?,
            qkv: self.head_rows("QKV weights", &[of(Query), of(Key), of(Value)])?,
            qkv_bias: some(variant.qkv_bias, || {
                self.head_vector("QKV biases", &[QueryBias, KeyBias, ValueBias].map(of))
            })?,
            head_norms: some(variant.qk_norm, || {
                self.head_gains("query and key norms", &[QueryNorm, KeyNorm].map(of))
            })?,
            output: self.head_columns("output weights", of(Output))?,
            ffn_norm: self.vector("FFN norm", &[of(FfnNorm)])?,
            gate_up: self.matrix("gate and up weights", &[of(Gate), of(Up)])?,
            down: self.matrix("down weights", &[of(Down)])?,
        })
    }

    /// `tensors` of one row each, one after the other.
    pub(super) fn vector(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<f32>, CudaModelError> {
        Ok(DeviceBuffer::from_slice(self.device, what, &self.values(tensors)?)?)
    }

    pub(super) fn values(&self, tensors: &[Tensor]) -> Result<Vec<f32>, CudaModelError> {
        let mut values = Vec::new();
        for &tensor in tensors {
            let begin = values.len();
            values.resize(begin + self.weights.shape(tensor)[1], 0.0);
            self.weights.read_f32(tensor, 0..1, &mut values[begin..])?;
        }
        Ok(values)
    }

    /// Rows of so many columns that are read at a time.
    pub(super) fn block_rows(columns: usize) -> usize {
        (BLOCK_ELEMENTS / columns).max(1)
    }

    /// `tensors`, which have as many columns, one below the other.
    pub(super) fn matrix(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        self.rows(what, tensors, 0..u32::MAX)
    }

    /// The same of these rows of each, as far as there are so many.
    pub(super) fn rows(
        &self,
        what: &'static str,
        tensors: &[Tensor],
        rows: Range<u32>,
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        match self.dtype {
            DType::F16 => self.rows_of::<f16>(what, tensors, rows),
            _ => self.rows_of::<bf16>(what, tensors, rows),
        }
    }

    pub(super) fn rows_of<T: KvElement>(
        &self,
        what: &'static str,
        tensors: &[Tensor],
        of: Range<u32>,
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        let rows = |tensor| of.start as usize..self.weights.shape(tensor)[0].min(of.end as usize);
        let sizes =
            tensors.iter().map(|&tensor| rows(tensor).len() * self.weights.shape(tensor)[1]);
        let elements = sizes.sum();
        let buffer = DeviceBuffer::uninitialized(self.device, what, elements)?;
        let mut staged = Vec::new();
        let mut first = 0;
        for &tensor in tensors {
            let [_, columns] = self.weights.shape(tensor);
            let block = Self::block_rows(columns);
            for begin in rows(tensor).step_by(block) {
                let end = (begin + block).min(rows(tensor).end);
                staged.resize((end - begin) * columns, T::default());
                self.weights.read_as(tensor, begin..end, &mut staged)?;
                buffer.write(first, bytemuck::cast_slice(&staged), self.stream)?;
                first += staged.len();
            }
        }
        Ok(buffer)
    }
}

/// Weights made on the device.
pub(super) struct Maker<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) ops: ModelOps,
    pub(super) stream: &'a Stream,
    pub(super) seed: u64,
}

impl Maker<'_> {
    pub(super) fn vector(
        &self,
        what: &'static str,
        count: u32,
        value: f32,
    ) -> Result<DeviceBuffer<f32>, CudaError> {
        DeviceBuffer::from_slice(self.device, what, &vec![value; count as usize])
    }

    pub(super) fn matrix(
        &mut self,
        what: &'static str,
        rows: u32,
        columns: u32,
    ) -> Result<DeviceBuffer<u16>, CudaError> {
        let count = u64::from(rows) * u64::from(columns);
        let buffer = DeviceBuffer::uninitialized(self.device, what, count as usize)?;
        self.seed = self.seed.wrapping_add(1);
        let fill = FillRandom {
            out: buffer.pointer(),
            count,
            seed: self.seed,
            // A uniform variable on (-a, a) has variance a^2 / 3.
            scale: (3.0 / columns as f32).sqrt(),
        };
        // SAFETY: the buffer has `count` elements and outlives the work, for which `random` waits: an error on the
        // way frees it, and freeing waits too.
        unsafe { self.ops.fill_random(&fill, self.stream.raw()) }?;
        Ok(buffer)
    }
}

/// What only some models have.
pub(super) fn some<T, E>(
    is_there: bool,
    make: impl FnOnce() -> Result<T, E>,
) -> Result<Option<T>, E> {
    is_there.then(make).transpose()
}
