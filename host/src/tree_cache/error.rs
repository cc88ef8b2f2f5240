//! Why a cache refused.

use crate::attention::{BackendError, Reduce};
use crate::cache::{CacheShape, PoolError, ShapeError};
use crate::format::KvFormat;
use crate::plan::PlanError;
use crate::prefix::PrefixError;
use crate::restore::RestoreError;
use crate::retain::CompactionError;
use crate::saved::SavedError;
use crate::tree::ForestError;

/// Why a [`TreeCache`](super::TreeCache) refused. The cache is as it was, also where a device failed: unless it is lost,
/// the call may be made again. Results that a device failed to deliver may be there in part.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Query heads do not go with KV heads.
    #[error("q_heads is {q_heads}; it must be a positive multiple of kv_heads, {kv_heads}")]
    Heads {
        /// Query heads asked for.
        q_heads: u32,
        /// KV heads asked for.
        kv_heads: u32,
    },
    /// More query heads than a plan of the device takes.
    #[error("q_heads is {q_heads}; with {kv_heads} kv_heads the device takes at most {most}")]
    TooManyHeads {
        /// Query heads asked for.
        q_heads: u32,
        /// KV heads asked for.
        kv_heads: u32,
        /// Most query heads.
        most: u64,
    },
    /// A backend was made of another shape than it was asked for.
    #[error("the backend is of {found:?}; it was asked for {expected:?}")]
    BackendShape {
        /// What it has.
        found: CacheShape,
        /// What the configuration says.
        expected: CacheShape,
    },
    /// An elastic store was asked for of a backend without one.
    #[error(
        "the store is elastic, but the backend {backend} has extents of {extents:?} pages; some of 16 are needed"
    )]
    NotElastic {
        /// The backend's name.
        backend: String,
        /// Pages of its extents, if it has any.
        extents: Option<u32>,
    },
    /// A dimension of the cache is out of range.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The page pool cannot be as large as asked for.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A compaction is not of the node's rows.
    #[error(transparent)]
    Compaction(#[from] CompactionError),
    /// [`KvFormat::Compacted`] is none to seal nodes in.
    #[error("nodes are not sealed as compacted: TreeCache::compact_node says which rows are left")]
    SealedAsCompacted,
    /// Rows are to be folded away, and nobody has said how.
    #[error("heads[{head}] folds {rows} rows, but the cache has no feature map: set one first")]
    NoFeatureMap {
        /// The head, counted `layer * kv_heads + kv_head`.
        head: usize,
        /// How many rows it folds.
        rows: usize,
    },
    /// Rows were folded away by another feature map.
    #[error("nodes have rows that were folded by the feature map that is set: prune them first")]
    FeatureMapInUse,
    /// The forest refused.
    #[error(transparent)]
    Forest(#[from] ForestError),
    /// The layer has no keys and values of its own.
    #[error("layer {layer} reads the keys and values of layer {of}: there is nothing to write")]
    SharedLayer {
        /// The layer given.
        layer: u32,
        /// Whose keys and values it reads.
        of: u32,
    },
    /// The prefix index refused.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A prefix was not saved or loaded.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// There is no plan to restore a prefix by.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The planner refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An argument of an append or of attention is wrong, or the device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Nodes were added or removed, or the batch's own grew, since it was made.
    #[error("the batch is out of date: {change} since it was made; advance or refresh it")]
    StaleBatch {
        /// What happened.
        change: &'static str,
    },
    /// The batch is another cache's.
    #[error("the batch was made by another cache")]
    ForeignBatch,
    /// Tokens in pages of another format than the native one cannot be written.
    #[error(
        "tokens {}..{} of those named are kept in {format}: seal their node as native first",
        tokens.start,
        tokens.end
    )]
    InFormat {
        /// Which of the tokens named.
        tokens: std::ops::Range<usize>,
        /// How they are kept.
        format: KvFormat,
    },
    /// The graph holds steps of another cache.
    #[error("the graph is of another cache; each cache has graphs of its own")]
    ForeignGraph,
    /// A step has more rows than tokens, and there are no keys and values for those.
    #[error(
        "append in a step of {rows} rows for {tokens} tokens: such rows are for launches of your own"
    )]
    PaddedStep {
        /// Rows of the step.
        rows: usize,
        /// Rows of its batch.
        tokens: usize,
    },
    /// A cache's scores are of one kind.
    #[error(
        "the cache has scores of kind {held:?}, {asked:?} is asked for; forget_scores drops them"
    )]
    ScoreKind {
        /// What it has.
        held: Reduce,
        /// What was asked for.
        asked: Reduce,
    },
    /// A builder was not told what it has to know.
    #[error("the cache cannot be built without .{call}")]
    Missing {
        /// What to call.
        call: &'static str,
    },
    /// The device cannot be opened, or has no room for the cache.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}
