//! Why a workload file was refused.

use deft::cache::PoolError;
use deft::tree::ForestError;

/// Why a workload could not be loaded or built.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The text is no JSON of the expected form.
    #[error("not a workload file: {0}")]
    Json(#[from] serde_json::Error),
    /// Something is empty that must not be.
    #[error("{at}: {what} is empty")]
    Empty {
        /// Which part of the file.
        at: String,
        /// What is empty.
        what: &'static str,
    },
    /// Query heads are no positive multiple of KV heads.
    #[error("{at}: {q_heads} query heads are no positive multiple of {kv_heads} KV heads")]
    Heads {
        /// Which part of the file.
        at: String,
        /// Query heads.
        q_heads: u32,
        /// KV heads.
        kv_heads: u32,
    },
    /// A number is out of range.
    #[error("{at}: {name} is {value}; it must be between {min} and {max}")]
    OutOfRange {
        /// Which part of the file.
        at: String,
        /// Which number.
        name: &'static str,
        /// What it is.
        value: i64,
        /// Least allowed.
        min: i64,
        /// Most allowed.
        max: i64,
    },
    /// Two arrays that go together differ in length.
    #[error("{at}: {left} has {left_len} entries and {right} has {right_len}")]
    Lengths {
        /// Which part of the file.
        at: String,
        /// One array.
        left: &'static str,
        /// Its length.
        left_len: usize,
        /// The other.
        right: &'static str,
        /// Its length.
        right_len: usize,
    },
    /// A node's parent is unknown, itself, or after it: so no cycle passes.
    #[error("{at}: node {node} has parent {parent}, which does not precede it")]
    Parent {
        /// Which part of the file.
        at: String,
        /// The node.
        node: usize,
        /// Its parent.
        parent: i64,
    },
    /// A node other than the first has no parent, or the first has one.
    #[error("{at}: node {node} has parent {parent}; node 0 alone is a root, with parent -1")]
    Root {
        /// Which part of the file.
        at: String,
        /// The node.
        node: usize,
        /// Its parent.
        parent: i64,
    },
    /// A query names no node, or a node twice.
    #[error("{at}: query {query} names node {node} of {nodes}; each node may be named once")]
    Query {
        /// Which part of the file.
        at: String,
        /// Index of the query.
        query: usize,
        /// The node it names.
        node: u32,
        /// Nodes there are.
        nodes: usize,
    },
    /// A child begins before its parent has ended.
    #[error("{at}: node {node} starts in step {start}, but its parent grows until step {end}")]
    Start {
        /// Which part of the file.
        at: String,
        /// The node.
        node: usize,
        /// Its first step.
        start: i64,
        /// Its parent's last step.
        end: i64,
    },
    /// The forest refused an operation.
    #[error(transparent)]
    Forest(#[from] ForestError),
    /// The pool refused its size.
    #[error(transparent)]
    Pool(#[from] PoolError),
}
