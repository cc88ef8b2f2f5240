//! What the suite says of a task with one grouping.

use serde::{Deserialize, Serialize};

/// One task with one grouping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) task: String,
    pub(crate) model: String,
    pub(crate) prompt_tokens: Option<u32>,
    pub(crate) grouping: String,
    pub(crate) chunk_pages: Option<u32>,
    pub(crate) runs: u32,
    pub(crate) steps: u32,
    pub(crate) timed_steps: u32,
    pub(crate) attention_s: Option<f64>,
    pub(crate) kv_tb: f64,
    pub(crate) partial_tb: f64,
    pub(crate) kv_issued_tb: f64,
    pub(crate) partial_issued_tb: f64,
    pub(crate) speedup_over_per_query: Option<f64>,
    pub(crate) max_rel_l2: Option<f64>,
}

impl Row {
    /// The table's head.
    pub(super) const HEADER: &str = "task             model         prompt grouping   chunk  steps  timed   seconds  speedup     KV TB   partial KV issued   partial";

    /// The row of the table.
    pub(super) fn line(&self) -> String {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        format!(
            "{:16} {:13} {:>6} {:10} {:>5} {:6} {:6} {:>9} {:>8} {:9.3} {:9.3} {:9.3} {:9.3}",
            self.task,
            self.model,
            or_dash(self.prompt_tokens.map(|tokens| tokens.to_string())),
            self.grouping,
            or_dash(self.chunk_pages.map(|pages| pages.to_string())),
            self.steps,
            self.timed_steps,
            or_dash(self.attention_s.map(|s| format!("{s:.3}"))),
            or_dash(self.speedup_over_per_query.map(|ratio| format!("{ratio:.2}x"))),
            self.kv_tb,
            self.partial_tb,
            self.kv_issued_tb,
            self.partial_issued_tb
        )
    }
}
