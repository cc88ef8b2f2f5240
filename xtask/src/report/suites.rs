//! Rows of the suites; docs/benchmarks/README.md says what each field is. A field that a file lacks is
//! `None`, and fields that are not here are ignored.

use serde::Deserialize;

/// Time against the number of queries, the length of the context, or the number of trees.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Scaling {
    /// What is varied: `queries`, `context` or `trees`.
    pub(super) workload: String,
    pub(super) grouping: String,
    pub(super) queries: u32,
    pub(super) context: u32,
    pub(super) trees: u32,
    pub(super) median_us: f64,
    pub(super) floor_us: f64,
    pub(super) bytes_unique: u64,
    pub(super) bytes_issued: u64,
}

impl Scaling {
    /// The value of what is varied.
    pub(super) fn varied(&self) -> u32 {
        match self.workload.as_str() {
            "context" => self.context,
            "trees" => self.trees,
            _ => self.queries,
        }
    }
}

/// A task of the paper with one grouping, all steps and layers.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Paper {
    pub(super) task: String,
    pub(super) model: String,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) grouping: String,
    pub(super) chunk_pages: Option<u32>,
    pub(super) attention_s: Option<f64>,
    pub(super) kv_tb: Option<f64>,
    pub(super) partial_tb: Option<f64>,
    pub(super) kv_issued_tb: Option<f64>,
    pub(super) partial_issued_tb: Option<f64>,
    pub(super) speedup_over_per_query: Option<f64>,
}

/// Host time of one change of a tree.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Plan {
    pub(super) tree: String,
    pub(super) nodes: u32,
    pub(super) queries: u32,
    pub(super) change: String,
    pub(super) grouping: Option<String>,
    pub(super) median_us: f64,
}

/// Processor time of PerQuery over that of a grouping.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Cpu {
    pub(super) workload: String,
    pub(super) grouping: String,
    pub(super) ratio_to_per_query: f64,
}

/// A model that decodes over a tree.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Engine {
    pub(super) model: String,
    pub(super) task: String,
    pub(super) grouping: String,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) queries: Option<f64>,
    pub(super) step_ms: f64,
    pub(super) attention_ms: Option<f64>,
    pub(super) host_gap_ms: Option<f64>,
    pub(super) tokens_per_s: Option<f64>,
    pub(super) memory_gb: Option<f64>,
    pub(super) attention_share: Option<f64>,
}

/// What the paper prints.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Printed {
    pub(super) tables: Vec<PrintedTable>,
}

/// One of its tables.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PrintedTable {
    pub(super) table: u32,
    pub(super) metric: String,
    pub(super) columns: Vec<PrintedColumn>,
    pub(super) rows: Vec<PrintedRow>,
}

/// A task of a table.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PrintedColumn {
    pub(super) task: String,
    pub(super) model: String,
    pub(super) prompt_tokens: Option<u32>,
}

/// A method of a table.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PrintedRow {
    pub(super) method: String,
    pub(super) grouping: Option<String>,
    pub(super) values: Vec<Option<f64>>,
}

/// A grouping's name as people read it.
pub(super) fn title(grouping: &str) -> &str {
    match grouping {
        "flatten" => "Flatten",
        "node" => "Node",
        "node-chunk" => "NodeChunk",
        "per-query" => "PerQuery",
        "medusa-io" => "dense mask (Medusa)",
        other => other,
    }
}
