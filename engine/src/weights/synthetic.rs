//! Random weights that are made as they are read.

use std::ops::Range;

use kernels_gpu::random::word;

use super::{LayerTensor, Source, Tensor, WeightsError};
use crate::config::LlamaConfig;

#[derive(Debug)]
pub(super) struct Synthetic {
    config: LlamaConfig,
    seed: u64,
}

impl Synthetic {
    pub(super) fn new(config: LlamaConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// A stream of random words a row, so that rows can be made in any order.
    fn row_state(&self, tensor: Tensor, row: usize) -> u64 {
        let of_tensor = word(self.seed ^ word(number(tensor), 0), 0);
        word(of_tensor ^ row as u64, 0)
    }
}

impl Source for Synthetic {
    fn read(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        if tensor.is_norm() {
            out.fill(1.0);
            return Ok(());
        }
        let [_, columns] = tensor.shape(&self.config);
        // A uniform variable on (-a, a) has variance a^2 / 3.
        let scale = (3.0 / columns as f32).sqrt() / 32_768.0;
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let state = self.row_state(tensor, row);
            for (index, four) in (0u64..).zip(out.chunks_mut(4)) {
                let bits = word(state.wrapping_add(index), 0);
                for (lane, value) in four.iter_mut().enumerate() {
                    let integer = (bits >> (16 * lane)) as u16 as i16;
                    *value = (f32::from(integer) + 0.5) * scale;
                }
            }
        }
        Ok(())
    }
}

/// Tensors of a layer of Llama.
const LAYER: u64 = LayerTensor::ALL.len() as u64;

/// A number of its own for each tensor.
fn number(tensor: Tensor) -> u64 {
    match tensor {
        Tensor::Embedding => 0,
        Tensor::FinalNorm => 1,
        Tensor::Head => 2,
        Tensor::Layer(layer, tensor) => match u64::from(layer) * LAYER + tensor as u64 {
            number if (tensor as u64) < LAYER => 3 + number,
            // Llama's tensors have had their numbers for longer.
            number => (1 << 32) + number,
        },
    }
}
