//! Why a model on a GPU was not made or did not run.

use deft::CacheError;
use deft::cache::{PoolError, ShapeError};
use deft::cuda::CudaError;
use deft::plan::PlanError;
use deft::tree::ForestError;

use super::{CublasError, NcclError};
use crate::{ConfigError, ModelError, RankError, WeightsError};

/// Why a model on a GPU was not made or did not run.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CudaModelError {
    /// The device.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// Matrix products.
    #[error(transparent)]
    Cublas(#[from] CublasError),
    /// Sums and gathers over ranks.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// The ranks that run the model together.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model's shape is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cache's metadata.
    #[error(transparent)]
    Cache(Box<CacheError>),
    /// An option is out of range.
    #[error("{option} is {value}; it must be {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// More tokens in one pass than buffers were made for.
    #[error("a pass of {rows} tokens; the model was made for {max_rows} (`max_rows`)")]
    Rows {
        /// Tokens of the pass.
        rows: usize,
        /// Most that there may be.
        max_rows: u32,
    },
}

impl From<CacheError> for CudaModelError {
    fn from(error: CacheError) -> Self {
        Self::Cache(Box::new(error))
    }
}

impl From<CudaModelError> for ModelError {
    fn from(error: CudaModelError) -> Self {
        match error {
            CudaModelError::Cache(error) => Self::Cache(*error),
            CudaModelError::Ranks(error) => Self::Ranks(error),
            CudaModelError::Rows { rows, max_rows } => Self::Rows { rows, max_rows },
            CudaModelError::Option { option, value, expected } => {
                Self::Option { option, value, expected }
            }
            error => Self::Cache(CacheError::Device(Box::new(error))),
        }
    }
}

impl From<CudaError> for ModelError {
    fn from(error: CudaError) -> Self {
        CudaModelError::from(error).into()
    }
}

impl From<CublasError> for ModelError {
    fn from(error: CublasError) -> Self {
        CudaModelError::from(error).into()
    }
}

macro_rules! through_cache_error {
    ($($error:ty),*) => {$(
        impl From<$error> for ModelError {
            fn from(error: $error) -> Self {
                Self::Cache(error.into())
            }
        }
    )*};
}
through_cache_error!(ForestError, PlanError, PoolError, ShapeError);
