//! What a replay found, as a table and as JSON.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use deft::Grouping;
use serde::Serialize;

use super::session::{Bytes, Tally};

/// What a replay found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workload: String,
    /// Which of the workload's runs.
    pub(crate) run: String,
    #[serde(skip)]
    pub(crate) title: String,
    pub(crate) device: String,
    pub(crate) q_heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) dtype: String,
    pub(crate) nodes: usize,
    pub(crate) tokens: u64,
    /// Decode steps: bytes and plans are those of all of them, of one layer.
    pub(crate) steps: usize,
    /// Steps on which attention was run.
    pub(crate) sampled_steps: usize,
    /// Output rows, each a query and a head, that were compared with f64, a grouping.
    pub(crate) checked_rows: u64,
    /// K and V that queries see, each once: the least that can be read.
    pub(crate) unique_kv_bytes: u64,
    pub(crate) groupings: Vec<Line>,
    pub(crate) picture: String,
    pub(crate) seconds: f64,
}

/// A grouping.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) grouping: &'static str,
    pub(crate) paper_kv_bytes: u64,
    pub(crate) issued_kv_bytes: u64,
    pub(crate) issued_read_bytes: u64,
    pub(crate) issued_written_bytes: u64,
    /// Bytes less than PerQuery's, in percent: of K and V by the paper's count, and of all reads issued.
    pub(crate) paper_reduction_percent: f64,
    pub(crate) issued_reduction_percent: f64,
    /// Attention of a sampled step, and in multiples of PerQuery's.
    pub(crate) attention_ms: f64,
    pub(crate) attention_of_per_query: f64,
    /// Planning of a step, whether it took nothing, a patch or a new plan.
    pub(crate) plan_us: f64,
    /// A new plan, and how many were needed.
    pub(crate) new_plan_us: f64,
    pub(crate) new_plans: u32,
    pub(crate) worst_relative_l2: f64,
    pub(crate) worst_lse_error: f64,
}

impl Line {
    /// The sums `tally` of `steps` steps, `sampled` of them sampled, beside those of the baseline.
    pub(crate) fn new(
        grouping: Grouping,
        (tally, baseline): (&Tally, &Tally),
        steps: usize,
        sampled: usize,
    ) -> Self {
        let less = |bytes: u64, of: u64| 100.0 * (1.0 - ratio(bytes as f64, of as f64));
        let mean = |time: Duration, count: usize| ratio(time.as_secs_f64(), count as f64);
        let Bytes { kv, read, written } = tally.issued;
        Self {
            grouping: name(grouping),
            paper_kv_bytes: tally.paper_kv,
            issued_kv_bytes: kv,
            issued_read_bytes: read,
            issued_written_bytes: written,
            paper_reduction_percent: less(tally.paper_kv, baseline.paper_kv),
            issued_reduction_percent: less(read, baseline.issued.read),
            attention_ms: 1e3 * mean(tally.attention, sampled),
            attention_of_per_query: ratio(
                tally.attention.as_secs_f64(),
                baseline.attention.as_secs_f64(),
            ),
            plan_us: 1e6 * mean(tally.planning, steps),
            new_plan_us: 1e6 * mean(tally.new_planning, tally.new_plans as usize),
            new_plans: tally.new_plans,
            worst_relative_l2: tally.worst_output,
            worst_lse_error: tally.worst_lse,
        }
    }
}

fn name(grouping: Grouping) -> &'static str {
    match grouping {
        Grouping::PerQuery => "PerQuery",
        Grouping::Node => "Node",
        Grouping::NodeChunk => "NodeChunk",
        Grouping::Flatten => "Flatten",
        _ => "other",
    }
}

/// `a / b`; 1 where there was nothing at all.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 1.0 } else { a / b }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            q_heads,
            kv_heads,
            head_dim,
            dtype,
            ..
        } = self;
        writeln!(f, "{}", self.title)?;
        let size = size(self.nodes, self.tokens, self.steps);
        writeln!(f, "    {size}")?;
        writeln!(
            f,
            "    one layer, {q_heads} query heads on {kv_heads} KV heads x {head_dim}, {dtype}"
        )?;
        writeln!(f, "    {}\n", self.device)?;
        for line in HEADER {
            writeln!(f, "{line}")?;
        }
        for line in &self.groupings {
            writeln!(f, "{line}")?;
        }
        let seen = bytes(self.unique_kv_bytes);
        writeln!(
            f,
            "\nBytes are those of all steps; K and V that some query sees, each once: {seen}. The paper"
        )?;
        writeln!(
            f,
            "counts K and V at the width of the query heads; issued is all that the plans read: K and V at"
        )?;
        writeln!(
            f,
            "the width of the KV heads, queries, programs, masks, partial results (docs/paper-io.md)."
        )?;
        let worst = |of: fn(&Line) -> f64| self.groupings.iter().map(of).fold(0.0, f64::max);
        writeln!(
            f,
            "Attention ran on {} steps, {} rows of each grouping's output compared with f64: at most",
            self.sampled_steps, self.checked_rows
        )?;
        writeln!(
            f,
            "{:.1e} off (relative L2), LSE {:.1e}.",
            worst(|line| line.worst_relative_l2),
            worst(|line| line.worst_lse_error)
        )?;
        writeln!(f, "Picture: {}", self.picture)?;
        write!(f, "Replayed in {:.1} s.", self.seconds)
    }
}

/// Columns of the table, as wide as those of a [`Line`].
const HEADER: [&str; 2] = [
    "                KV read,      than    all reads,      than   attention        of       plan      new",
    "          paper's count  PerQuery        issued  PerQuery      a step  PerQuery     a step     plan",
];

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10}{:>13}{:>10}{:>14}{:>10}{:>12}{:>10}{:>11}{:>9}",
            self.grouping,
            bytes(self.paper_kv_bytes),
            change(self.paper_reduction_percent),
            bytes(self.issued_read_bytes),
            change(self.issued_reduction_percent),
            format!("{:.2} ms", self.attention_ms),
            format!("{:.2} x", self.attention_of_per_query),
            format!("{:.1} us", self.plan_us),
            format!("{:.0} us", self.new_plan_us),
        )
    }
}

/// A reduction as what it changes.
fn change(reduction: f64) -> String {
    if reduction == 0.0 {
        return "-".to_owned();
    }
    format!("{:+.2} %", -reduction)
}

/// `101 nodes, 34,310 tokens, 3,708 decode steps`.
pub(crate) fn size(nodes: usize, tokens: u64, steps: usize) -> String {
    let count = |number: u64, what: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{} {what}{plural}", grouped(number))
    };
    [
        count(nodes as u64, "node"),
        count(tokens, "token"),
        count(steps as u64, "decode step"),
    ]
    .join(", ")
}

/// `docmergeToT, run 0`.
pub(crate) fn title(workload: &str, label: &str) -> String {
    if label.is_empty() {
        return workload.to_owned();
    }
    format!("{workload}, {label}")
}

/// File name of a picture: the run's, made of letters that every file system takes.
pub(crate) fn file_name(workload: &str, run: Option<&str>) -> String {
    let whole = [Some(workload), run]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("-");
    let safe = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    whole.chars().map(safe).collect::<String>() + ".svg"
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with three digits or four and a decimal unit.
fn bytes(bytes: u64) -> String {
    let (value, unit) = match bytes as f64 {
        b if b < 1e6 => (b / 1e3, "kB"),
        b if b < 1e9 => (b / 1e6, "MB"),
        b if b < 1e12 => (b / 1e9, "GB"),
        b => (b / 1e12, "TB"),
    };
    format!("{value:.2} {unit}")
}

/// The picture's path as JSON and the table have it.
pub(crate) fn shown(path: &Path) -> String {
    crate::workspace::shown(path).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(paper: u64, read: u64, attention_ms: u64) -> Tally {
        Tally {
            paper_kv: paper,
            issued: Bytes {
                kv: read / 2,
                read,
                written: 7,
            },
            planning: Duration::from_secs(40),
            attention: Duration::from_millis(attention_ms),
            ..Tally::default()
        }
    }

    #[test]
    fn totals_are_set_against_the_baseline_and_times_are_a_step() {
        let baseline = tally(1000, 500, 80);
        let line = Line::new(Grouping::Flatten, (&tally(250, 200, 20), &baseline), 10, 4);
        assert_eq!(
            (line.paper_reduction_percent, line.issued_reduction_percent),
            (75.0, 60.0)
        );
        assert_eq!(
            (line.attention_ms, line.attention_of_per_query, line.plan_us),
            (5.0, 0.25, 4e6)
        );
        let line = Line::new(Grouping::PerQuery, (&baseline, &baseline), 10, 4);
        assert_eq!(
            (line.paper_reduction_percent, line.attention_of_per_query),
            (0.0, 1.0)
        );
    }

    #[test]
    fn a_run_in_which_nobody_asks_has_no_reduction() {
        let empty = Tally::default();
        let line = Line::new(Grouping::Node, (&empty, &empty), 0, 0);
        assert_eq!(
            (line.paper_reduction_percent, line.attention_of_per_query),
            (0.0, 1.0)
        );
    }

    #[test]
    fn numbers_and_names_are_readable() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [12_345, 1_500_000, 2_000_000_000].map(bytes),
            ["12.35 kB", "1.50 MB", "2.00 GB"]
        );
        assert_eq!(file_name("trees", Some("a/b c")), "trees-a_b_c.svg");
        assert_eq!(file_name("medusa", None), "medusa.svg");
    }
}
