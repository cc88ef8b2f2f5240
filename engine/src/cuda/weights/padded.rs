//! Weights of heads that there are no kernels for: zeros follow each half of a head, so that the model on the device is one
//! of larger heads that computes the same.

use deft::cache::padded_head_dim;
use deft::cuda::DeviceBuffer;
use deft::{DType, KvElement, bf16, f16};

use super::source::Reader;
use crate::cuda::CudaModelError;
use crate::{LlamaConfig, Tensor};

/// Elements of half a head: in the file, and on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half {
    pub(super) own: usize,
    pub(super) padded: usize,
}

impl Half {
    pub(super) fn of(config: &LlamaConfig) -> Self {
        let [own, padded] = [config.head_dim, padded_head_dim(config.head_dim)];
        Self { own: own as usize / 2, padded: padded as usize / 2 }
    }

    fn is_padded(self) -> bool {
        self.own != self.padded
    }

    /// Elements of all heads on the device.
    fn padded_len(self, len: usize) -> usize {
        len / self.own * self.padded
    }

    /// Values of heads, each half followed by zeros.
    fn widen<T: Copy + Default>(self, values: &[T]) -> Vec<T> {
        let mut wide = vec![T::default(); self.padded_len(values.len())];
        for (half, wide) in values.chunks_exact(self.own).zip(wide.chunks_exact_mut(self.padded)) {
            wide[..self.own].copy_from_slice(half);
        }
        wide
    }
}

impl Reader<'_> {
    /// As [`Reader::vector`], of values of heads.
    pub(super) fn head_vector(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<f32>, CudaModelError> {
        self.head_values(what, tensors, 1.0)
    }

    /// The same of gains of norms of heads. A mean over a padded head is smaller, and so are the gains.
    pub(super) fn head_gains(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<f32>, CudaModelError> {
        let less = (self.half.own as f32 / self.half.padded as f32).sqrt();
        self.head_values(what, tensors, less)
    }

    fn head_values(
        &self,
        what: &'static str,
        tensors: &[Tensor],
        factor: f32,
    ) -> Result<DeviceBuffer<f32>, CudaModelError> {
        let mut values = self.half.widen(&self.values(tensors)?);
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(DeviceBuffer::from_slice(self.device, what, &values)?)
    }

    /// As [`Reader::matrix`], of rows that are dims of heads.
    pub(super) fn head_rows(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        match (self.half.is_padded(), self.dtype) {
            (false, _) => self.matrix(what, tensors),
            (true, DType::F16) => self.padded_rows_of::<f16>(what, tensors),
            (true, _) => self.padded_rows_of::<bf16>(what, tensors),
        }
    }

    /// As [`Reader::matrix`], of columns that are dims of heads.
    pub(super) fn head_columns(
        &self,
        what: &'static str,
        tensor: Tensor,
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        match (self.half.is_padded(), self.dtype) {
            (false, _) => self.matrix(what, &[tensor]),
            (true, DType::F16) => self.padded_columns_of::<f16>(what, tensor),
            (true, _) => self.padded_columns_of::<bf16>(what, tensor),
        }
    }

    fn padded_rows_of<T: KvElement>(
        &self,
        what: &'static str,
        tensors: &[Tensor],
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        let Half { own, padded } = self.half;
        let shapes = tensors.iter().map(|&tensor| self.weights.shape(tensor));
        let elements = shapes.map(|[rows, columns]| self.half.padded_len(rows) * columns).sum();
        let buffer = DeviceBuffer::uninitialized(self.device, what, elements)?;
        buffer.fill_bytes(0, self.stream)?;
        let mut first = 0;
        for &tensor in tensors {
            let [rows, columns] = self.weights.shape(tensor);
            let mut staged = vec![T::default(); own * columns];
            for begin in (0..rows).step_by(own) {
                self.weights.read_as(tensor, begin..begin + own, &mut staged)?;
                buffer.write(first, bytemuck::cast_slice(&staged), self.stream)?;
                first += padded * columns;
            }
        }
        Ok(buffer)
    }

    fn padded_columns_of<T: KvElement>(
        &self,
        what: &'static str,
        tensor: Tensor,
    ) -> Result<DeviceBuffer<u16>, CudaModelError> {
        let [rows, columns] = self.weights.shape(tensor);
        let wide = self.half.padded_len(columns);
        let buffer = DeviceBuffer::uninitialized(self.device, what, rows * wide)?;
        let block = Self::block_rows(columns);
        for begin in (0..rows).step_by(block) {
            let end = (begin + block).min(rows);
            let mut staged = vec![T::default(); (end - begin) * columns];
            self.weights.read_as(tensor, begin..end, &mut staged)?;
            let staged = self.half.widen(&staged);
            buffer.write(begin * wide, bytemuck::cast_slice(&staged), self.stream)?;
        }
        Ok(buffer)
    }
}

/// A part's shape as the device computes it.
pub(super) fn on_device(config: &LlamaConfig) -> LlamaConfig {
    LlamaConfig { head_dim: padded_head_dim(config.head_dim), ..config.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_follow_each_half_of_a_head_and_of_heads_with_kernels_none() {
        let half = Half { own: 2, padded: 3 };
        assert_eq!(half.widen(&[1, 2, 3, 4]), [1, 2, 0, 3, 4, 0]);
        let with = |head_dim| LlamaConfig { head_dim, ..LlamaConfig::llama3_8b() };
        assert!([64, 128, 256].iter().all(|&dim| !Half::of(&with(dim)).is_padded()));
        let half = Half::of(&with(80));
        assert_eq!((half.own, half.padded, on_device(&with(80)).head_dim), (40, 64, 128));
    }
}
