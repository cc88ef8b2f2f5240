//! Why weights were not read.

use super::Tensor;
use crate::config::ConfigError;

/// Why weights were not read.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The model's shape is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model has no such layer.
    #[error("layer is {layer}; the model has {layers}")]
    Layer {
        /// The layer asked for.
        layer: u32,
        /// Layers that there are.
        layers: u32,
    },
    /// The tensor has no such rows.
    #[error("rows {begin}..{end} are not within {tensor:?}, which has {rows}")]
    Rows {
        /// The tensor.
        tensor: Tensor,
        /// First row asked for.
        begin: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows that there are.
        rows: usize,
    },
    /// The place for the rows has another size.
    #[error("out has {len} elements, the rows of {tensor:?} take {expected}")]
    Length {
        /// The tensor.
        tensor: Tensor,
        /// Elements given.
        len: usize,
        /// Elements needed.
        expected: usize,
    },
}
