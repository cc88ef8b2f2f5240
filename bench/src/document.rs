//! The file that a suite writes: what it was made with, and its rows as they come.
//!
//! `docs/benchmarks/README.md` has the fields of every suite.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::device::Device;

/// A suite's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document<R> {
    #[serde(default = "trees")]
    pub(crate) suite: String,
    pub(crate) device: String,
    #[serde(default)]
    pub(crate) driver: String,
    pub(crate) commit: String,
    /// Day of that commit.
    #[serde(default)]
    pub(crate) commit_date: String,
    pub(crate) command: String,
    /// Microseconds of an empty graph, measured as the rows are; none on a CPU.
    #[serde(default)]
    pub(crate) empty_graph_us: Option<f64>,
    /// The kernels and what they take of a multiprocessor.
    #[serde(default)]
    pub(crate) kernels: Vec<String>,
    /// The language model, where one was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    pub(crate) rows: Vec<R>,
}

/// The suite of files that name none.
fn trees() -> String {
    "trees".to_owned()
}

impl<R: Clone + Serialize> Document<R> {
    /// Of no rows yet.
    pub(crate) fn new(suite: &str, device: &Device, empty_graph_us: Option<f64>) -> Self {
        Self {
            suite: suite.to_owned(),
            device: device.describe(),
            driver: device.driver(),
            commit: option_env!("DEFT_COMMIT").unwrap_or_default().to_owned(),
            commit_date: option_env!("DEFT_COMMIT_DATE").unwrap_or_default().to_owned(),
            command: command_line(std::env::args()),
            empty_graph_us,
            kernels: Vec::new(),
            model: None,
            rows: Vec::new(),
        }
    }

    /// The same run with rows of another kind to come.
    pub(crate) fn without_rows<S>(&self) -> Document<S> {
        Document {
            suite: self.suite.clone(),
            device: self.device.clone(),
            driver: self.driver.clone(),
            commit: self.commit.clone(),
            commit_date: self.commit_date.clone(),
            command: self.command.clone(),
            empty_graph_us: self.empty_graph_us,
            kernels: self.kernels.clone(),
            model: self.model.clone(),
            rows: Vec::new(),
        }
    }

    /// Writes the results so far, a row a line, if somebody wants them in a file.
    ///
    /// The file is never there in part: a run may be interrupted at any time.
    pub(crate) fn write(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let part = path.with_extension("json.part");
        std::fs::write(&part, self.text()?)
            .and_then(|()| std::fs::rename(&part, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn text(&self) -> Result<String> {
        let head = Self { rows: Vec::new(), ..self.clone() };
        let rows = self.rows.iter().map(serde_json::to_string);
        let rows = rows.collect::<Result<Vec<_>, _>>()?.join(",\n    ");
        let text = serde_json::to_string_pretty(&head)?;
        Ok(text.replace("\"rows\": []", &format!("\"rows\": [\n    {rows}\n  ]")) + "\n")
    }
}

/// The command as it was typed, the program without its directories.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let shown = words.enumerate().map(|(at, word)| match word.rsplit('/').next() {
        Some(name) if at == 0 => name.to_owned(),
        _ => word,
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trees::Row;

    #[test]
    fn the_committed_run_is_read_with_its_suite_and_written_with_all_its_rows() {
        let text = include_str!("../../docs/benchmarks/h100-trees.json");
        let document: Document<Row> = serde_json::from_str(text).unwrap();
        assert_eq!(document.suite, "trees");
        let workloads = deft_workloads::StepWorkload::parse(crate::trees::WORKLOADS).unwrap();
        assert_eq!(document.rows.len(), 4 * workloads.len());
        let again: Document<Row> = serde_json::from_str(&document.text().unwrap()).unwrap();
        assert_eq!(again, document);
    }

    #[test]
    fn a_file_holds_a_row_a_line_and_replaces_the_one_before() {
        let path = std::env::temp_dir().join(format!("deft-bench-{}.json", std::process::id()));
        let mut document = Document::<u32>::new("plan", &Device::Cpu, None);
        document.write(Some(&path)).unwrap();
        document.rows = vec![7, 8];
        document.write(Some(&path)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.contains("\n    7,\n    8\n"), "{text}");
        assert_eq!(serde_json::from_str::<Document<u32>>(&text).unwrap(), document);
    }

    #[test]
    fn a_command_does_not_say_where_the_program_lies() {
        let words = ["/some/where/deft-bench", "trees", "--json", "out/a.json"];
        let shown = command_line(words.into_iter().map(str::to_owned));
        assert_eq!(shown, "deft-bench trees --json out/a.json");
    }
}
