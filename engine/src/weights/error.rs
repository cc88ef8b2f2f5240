//! Why weights were not read.

use std::error::Error;
use std::path::{Path, PathBuf};

use deft::{DType, KvElement, bf16, f16};

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
    /// A weight is too large for the type it is wanted in.
    #[error(
        "{tensor:?} has a weight of {value}; {dtype} holds up to {largest}, bf16 up to {:.2e}",
        bf16::MAX.to_f32()
    )]
    Range {
        /// The tensor.
        tensor: Tensor,
        /// The weight.
        value: f32,
        /// The type that it is wanted in.
        dtype: DType,
        /// The largest number of that type.
        largest: f32,
    },
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is broken, or holds another kind of model.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file, or the folder.
        path: PathBuf,
        /// What is wrong with it: of a GGUF file a [`GgufError`](crate::gguf::GgufError).
        problem: Box<dyn Error + Send + Sync>,
    },
}

impl WeightsError {
    pub(crate) fn file(path: &Path, problem: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let (path, problem) = (path.to_owned(), problem.into());
        Self::File { path, problem }
    }

    pub(super) fn range<T: KvElement>(tensor: Tensor, value: f32) -> Self {
        let dtype = T::DTYPE;
        let largest = match dtype {
            DType::F16 => f16::MAX.to_f32(),
            DType::Bf16 => bf16::MAX.to_f32(),
            _ => f32::MAX,
        };
        Self::Range { tensor, value, dtype, largest }
    }

    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, error }
    }
}
