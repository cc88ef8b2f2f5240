//! Why a backend refuses.

use kernels_gpu::abi::PAGE_TOKENS;

use crate::cache::{DType, PageId, ShapeError};
use crate::format::{FormatError, KvFormat};

/// Why a backend refused. The cache and the outputs are as they were before the call; after [`BackendError::Device`]
/// outputs may be there in part.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such layer.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A slice is of another element type than the cache.
    #[error("{argument} is {found}, the cache holds {expected}")]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// What came.
        found: DType,
        /// What the cache holds.
        expected: DType,
    },
    /// Rows on a GPU came to a backend that has none.
    #[error("{argument} is on a GPU, the cache is in the host's memory")]
    NotOnHost {
        /// The argument's name.
        argument: &'static str,
    },
    /// Rows in the host's memory came to a step that is captured as a CUDA graph, or to attention in place on a GPU.
    #[error(
        "{argument} is in the host's memory; rows of a captured step, and of attention in place, are on the GPU"
    )]
    NotOnDevice {
        /// The argument's name.
        argument: &'static str,
    },
    /// Rows on a GPU begin at an address that kernels cannot read 16 bytes at.
    #[error("{argument} begins at {address:#x}; it must be a multiple of 16")]
    Misaligned {
        /// The argument's name.
        argument: &'static str,
        /// Where it begins.
        address: u64,
    },
    /// A slice is too short or too long.
    #[error("{argument} has {found} elements, {shape} takes {expected}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// What came.
        found: usize,
        /// What its shape takes.
        expected: usize,
        /// Its shape.
        shape: &'static str,
    },
    /// A target, a move, a place or a table names a page beyond its cache.
    #[error("{argument}[{index}] names page {page}, {holder} has {pages}")]
    Page {
        /// The argument's name.
        argument: &'static str,
        /// Index into it.
        index: usize,
        /// The page named.
        page: PageId,
        /// What has too few pages: the cache, or `k` or `v` of a foreign one.
        holder: &'static str,
        /// How many it has.
        pages: usize,
    },
    /// Compaction names a cell, or a token in one, that is not there.
    #[error(
        "{argument}[{index}] names token {token} of cell {cell}; the cache has {cells} cells of {PAGE_TOKENS} tokens"
    )]
    Cell {
        /// The argument's name.
        argument: &'static str,
        /// Index into it.
        index: usize,
        /// The cell named.
        cell: u32,
        /// The token named.
        token: u32,
        /// Cells of a layer.
        cells: u64,
    },
    /// A row that compaction writes has no source, or some that are not there.
    #[error("targets[{index}].end is {end}; it must be more than {before} and at most {sources}")]
    Sources {
        /// Index into the targets.
        index: usize,
        /// The end of its sources.
        end: u32,
        /// The end of those of the target before.
        before: u32,
        /// Sources given.
        sources: usize,
    },
    /// Rows were folded away, or are to be, and the backend cannot read what is left of them.
    #[error("residues of rows that were folded away are read on the CPU, not on {backend}")]
    Residues {
        /// The backend's name.
        backend: String,
    },
    /// A target names a counter that does not exist, or that counts no token.
    #[error("targets[{index}] names length slot {slot}, which holds no token")]
    Slot {
        /// Index into the targets.
        index: usize,
        /// The slot named.
        slot: u32,
    },
    /// Two entries name the same place, or the same foreign page, to be written.
    #[error(
        "{argument}[{first}] and {argument}[{index}] both name {value}; what is written is named once"
    )]
    Twice {
        /// The argument's name.
        argument: &'static str,
        /// Index of one.
        first: usize,
        /// Index of the other.
        index: usize,
        /// What both name: `page * 64 + token`, or a foreign page.
        value: u32,
    },
    /// A row's position is beyond the rotary table.
    #[error("positions[{index}] is {position}, the rotary table has {positions} positions")]
    Position {
        /// Index into the positions.
        index: usize,
        /// The position.
        position: u32,
        /// Positions of the table.
        positions: usize,
    },
    /// A rotary table was made for other heads than the cache's.
    #[error("the rotary table is of head_dim {found}, the cache of {expected}")]
    RotaryHeadDim {
        /// The table's.
        found: u32,
        /// The cache's.
        expected: u32,
    },
    /// The backend reads no pages of that format.
    #[error("KV format {format} is not available on {backend} yet; seal as native")]
    Format {
        /// The format asked for.
        format: KvFormat,
        /// The backend's name.
        backend: String,
    },
    /// A format whose groups of dims would hold padding.
    #[error(
        "KV format {format} groups the dims of a head; head_dim is {head_dim}, kept as {padded} here: seal as native, fp8 \
         or fp8-token"
    )]
    PaddedFormat {
        /// The format asked for.
        format: KvFormat,
        /// The cache's.
        head_dim: u32,
        /// That of its pages.
        padded: u32,
    },
    /// The backend makes no scores of tokens.
    #[error("scores of tokens are not available on {backend}")]
    Scores {
        /// The backend's name.
        backend: String,
    },
    /// A page holds what its format cannot store.
    #[error("from[{index}], layer {layer}, KV head {kv_head}: {source}")]
    Unstorable {
        /// Index into the pages to be rewritten.
        index: usize,
        /// The layer.
        layer: u32,
        /// The KV head.
        kv_head: u32,
        /// Which element it is.
        source: FormatError,
    },
    /// A number of a format is out of range.
    #[error(transparent)]
    FormatShape(FormatError),
    /// A number is none to compute with.
    #[error("{name} is {value}; it must be {expected}")]
    Param {
        /// The parameter.
        name: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// The device cannot do it, or failed.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}
