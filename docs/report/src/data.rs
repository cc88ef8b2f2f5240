//! Files of docs/benchmarks, tables of them, and numbers as people read them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Block;

/// Ends a block.
const END: &str = "<!-- report end -->";

/// A path of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// The text of a file of the repository.
pub(crate) fn read(name: &str) -> Result<String> {
    fs::read_to_string(path(name)).with_context(|| format!("cannot read {name}"))
}

/// A file of docs/benchmarks.
pub(crate) struct Suite {
    /// Its name.
    pub(crate) file: &'static str,
    /// All of it.
    pub(crate) all: Value,
    pub(crate) rows: Vec<Row>,
}

/// A row; docs/benchmarks/README.md says what each field is.
#[derive(Clone)]
pub(crate) struct Row(pub(crate) Value);

impl Suite {
    pub(crate) fn read(file: &'static str) -> Result<Self> {
        Self::parse(file, &read(&format!("docs/benchmarks/{file}"))?)
    }

    pub(crate) fn parse(file: &'static str, text: &str) -> Result<Self> {
        let all: Value = serde_json::from_str(text).with_context(|| file.to_owned())?;
        let rows = all["rows"].as_array().cloned().unwrap_or_default();
        let rows = rows.into_iter().map(Row).collect();
        Ok(Self { file, all, rows })
    }

    /// The rows that have `value` in the field `name`.
    pub(crate) fn having(&self, name: &str, value: &str) -> Vec<&Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.text(name) == value).collect()
    }

    /// What rows have in the field `name`, each once, in order.
    pub(crate) fn distinct(&self, name: &str) -> Vec<&str> {
        let mut values = Vec::new();
        for row in &self.rows {
            if !values.contains(&row.text(name)) {
                values.push(row.text(name));
            }
        }
        values
    }

    /// The row of a workload with a grouping.
    pub(crate) fn row(&self, workload: &str, grouping: &str) -> Result<&Row> {
        let mut rows = self.rows.iter();
        let found = rows.find(|r| r.text("workload") == workload && r.text("grouping") == grouping);
        found.with_context(|| format!("{} lacks {workload} {grouping}", self.file))
    }
}

impl Row {
    /// The field `name` as text; empty if it has none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.0[name].as_f64()
    }

    /// A number that every row of a suite has.
    pub(crate) fn get(&self, name: &str) -> Result<f64> {
        let number = self.number(name);
        number.with_context(|| format!("no {name} in {}", self.0))
    }

    /// Whether the two rows have the same in the fields `names`.
    pub(crate) fn is_like(&self, other: &Value, names: &[&str]) -> bool {
        names.iter().all(|name| self.0[name] == other[name])
    }
}

/// Cells by row; the first column is the row's name.
#[derive(Clone)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table under the head `a | b | c`.
    pub(crate) fn new(head: &str) -> Self {
        let head = head.split(" | ").map(str::to_owned).collect();
        let rows = Vec::new();
        Self { head, rows }
    }

    pub(crate) fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.head.len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// As Markdown; nothing if it has no row.
    pub(crate) fn markdown(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let line = |cells: &Vec<String>| {
            // Not two blanks where there is nothing.
            let padded = cells.iter().map(|cell| format!("| {cell} "));
            padded.collect::<String>().replace("|  ", "| ") + "|\n"
        };
        let rule = format!("|{}\n", "---|".repeat(self.head.len()));
        line(&self.head) + &rule + &self.rows.iter().map(line).collect::<String>()
    }

    pub(crate) fn html(&self) -> String {
        let line = |cells: &Vec<String>, tag: &str| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows = self.rows.iter().map(|row| line(row, "td"));
        format!(
            "<div class=\"scroll\" tabindex=\"0\"><table><thead>{}</thead><tbody>\n{}</tbody></table></div>",
            line(&self.head, "th"),
            rows.collect::<String>()
        )
    }
}

/// What begins the block `name`.
pub(crate) fn opening(name: &str) -> String {
    format!("<!-- report: {name} -->\n")
}

/// `page` with its blocks replaced by those of `blocks`.
pub(crate) fn fill(page: &str, blocks: &[Block]) -> Result<String> {
    let mut parts = page.split("<!-- report: ");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let block = part.split_once(" -->\n").and_then(|(name, rest)| {
            let (_, text) = blocks.iter().find(|(known, _)| *known == name)?;
            Some((name, text, rest.split_once(END)?.1))
        });
        let (name, text, after) = block.with_context(|| {
            let line = part.lines().next().unwrap_or_default();
            format!("no block to fill, or no end of it, at `{line}`")
        })?;
        filled += &[&opening(name), text, END, after].concat();
    }
    Ok(filled)
}

/// `text` as it has to be written in HTML.
pub(crate) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// `value`, written by `write`, or a dash.
pub(crate) fn or_dash<T>(value: Option<T>, write: impl FnOnce(T) -> String) -> String {
    value.map_or("-".to_owned(), write)
}

/// With commas, and as many decimals as it has, three at most.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{:.3}", value.abs());
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = if value < 0.0 { "-" } else { "" }.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let decimals = decimals.trim_end_matches('0');
    let point = if decimals.is_empty() { "" } else { "." };
    grouped + point + decimals
}

/// With about three digits that count.
pub(crate) fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => number(value.round()),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => number(value),
    }
}

/// A grouping's name as people read it.
pub(crate) fn title(grouping: &str) -> &str {
    match grouping {
        "flatten" => "Flatten",
        "node" => "Node",
        "node-chunk" => "NodeChunk",
        "per-query" => "PerQuery",
        "medusa-io" => "dense mask (Medusa)",
        other => other,
    }
}

pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (sum / f64::from(count.max(1))).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_the_same_as_markdown_and_as_html() {
        let mut table = Table::new("a | b");
        assert_eq!(table.markdown(), "");
        table.row(["x < y", ""]);
        assert_eq!(table.markdown(), "| a | b |\n|---|---|\n| x < y | |\n");
        assert!(table.html().contains("<tr><td>x &lt; y</td><td></td></tr>"));
    }

    #[test]
    fn a_block_is_replaced_and_the_rest_kept() {
        let page = "a\n<!-- report: x -->\nold\n<!-- report end -->\nb\n";
        let filled = fill(page, &[("x", "new\n".to_owned())]).unwrap();
        assert_eq!(filled, page.replace("old", "new"));
        let error = fill(page, &[]).unwrap_err().to_string();
        assert!(error.contains("at `x -->`"), "{error}");
    }

    #[test]
    fn numbers_are_readable() {
        let numbers = [0.0, 1234.5678, -1_000_000.0].map(number);
        assert_eq!(numbers, ["0", "1,234.568", "-1,000,000"]);
        let numbers = [0.12345, 1.0, 12.34, 1234.5].map(rounded);
        assert_eq!(numbers, ["0.123", "1.00", "12.3", "1,235"]);
    }
}
