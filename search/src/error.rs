//! Why a search failed.

use deft::CacheError;
use deft::cache::PoolError;
use deft::tree::ForestError;

use super::BranchId;
use deft_engine::ModelError;

/// Why a search failed. All its nodes are freed when it has ended, however it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// A parameter of the search is out of range.
    #[error("{name} is {value}; it must be {limit}")]
    Argument {
        /// The parameter's name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        limit: &'static str,
    },
    /// The branch was pruned, or forked and so replaced by its children.
    #[error("{branch} is not a branch of this search any more")]
    UnknownBranch {
        /// The branch given.
        branch: BranchId,
    },
    /// One leaf is left and there is no page for its next token.
    #[error(
        "out of pages with one leaf left, nothing can be pruned: {source}; give the cache more pages"
    )]
    OutOfPages {
        /// What the pool said.
        source: ModelError,
    },
    /// The model gave logits without a largest one.
    #[error("the logits after {branch} hold NaN or no finite value")]
    Logits {
        /// The branch that the row belongs to.
        branch: BranchId,
    },
    /// The tokenizer refused a text.
    #[error("the prompt has no tokens: {0}")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl SearchError {
    /// An error unless `value` is at least 1.
    pub(crate) fn at_least_one(name: &'static str, value: usize) -> Result<(), Self> {
        if value == 0 {
            let (value, limit) = (value.to_string(), "at least 1");
            return Err(Self::Argument { name, value, limit });
        }
        Ok(())
    }
}

/// Whether the model failed for want of pages, so that pruning would help.
pub(super) fn is_out_of_pages(error: &ModelError) -> bool {
    matches!(
        error,
        ModelError::Cache(
            CacheError::Pool(PoolError::OutOfPages { .. })
                | CacheError::Forest(ForestError::Pool(PoolError::OutOfPages { .. }))
        )
    )
}
