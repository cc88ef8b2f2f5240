//! What the recorded passes would take in a larger model.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::report::Row;
use crate::document::Document;

const MODEL: &str = "llama3-8b";
/// Tokens of the prompt in the times that are taken.
const CONTEXT: u32 = 1024;

/// Milliseconds of a pass of [`MODEL`] on an H100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Projection {
    /// With one token.
    one: f64,
    /// With 64 drafted nodes.
    verify: f64,
}

/// A row of `deft-bench engine`.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
struct Engine {
    model: String,
    task: String,
    grouping: String,
    prompt_tokens: u32,
    step_ms: f64,
}

impl Projection {
    /// By the run that comes with the program.
    pub(super) fn embedded() -> Result<Self> {
        let text = include_str!("../../../docs/benchmarks/h100-engine.json");
        let document: Document<Engine> =
            serde_json::from_str(text).context("docs/benchmarks/h100-engine.json")?;
        let of = |task: &str| {
            let mut rows = document.rows.iter().filter(|row| row.model == MODEL);
            let row = rows.find(|row| {
                row.task == task && row.grouping == "flatten" && row.prompt_tokens == CONTEXT
            });
            row.map(|row| row.step_ms).with_context(|| format!("{MODEL} {task} was not timed"))
        };
        Ok(Self { one: of("one-token")?, verify: of("speculative-64")? })
    }

    /// Milliseconds of a token with a row's passes. A pass that verified several tokens counts as one of 64.
    fn ms_a_token(&self, row: &Row) -> f64 {
        let passes =
            row.drafted.iter().map(|&drafted| if drafted > 1 { self.verify } else { self.one });
        passes.sum::<f64>() / row.kept.iter().sum::<usize>().max(1) as f64
    }

    /// A line a row.
    pub(super) fn lines<'a>(
        &self,
        rows: impl Iterator<Item = &'a Row>,
    ) -> impl Iterator<Item = String> {
        let line = |row: &Row| {
            let token = self.ms_a_token(row);
            format!(
                "projection: {MODEL} on an H100, {:12} drafts of {:2}: {token:.2} ms a token, {:.2} times as fast as \
                 {:.2} a token",
                row.prompt,
                row.nodes,
                self.one / token,
                self.one,
            )
        };
        rows.map(line).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_costs_a_verification_of_64_and_a_token_a_step() {
        let projection = Projection::embedded().unwrap();
        assert!(projection.one > 6.0 && projection.verify > projection.one, "{projection:?}");
        let row = Row {
            prompt: "mock".to_owned(),
            prompt_tokens: 3,
            nodes: 8,
            tokens: 7,
            ms_a_token: 1.0,
            differs_at: None,
            drafted: vec![1, 9],
            kept: vec![1, 5],
        };
        let projection = Projection { one: 2.0, verify: 4.0 };
        assert_eq!(projection.ms_a_token(&row), 1.0);
        let lines: Vec<String> = projection.lines(std::iter::once(&row)).collect();
        assert!(
            lines[0].ends_with("1.00 ms a token, 2.00 times as fast as 2.00 a token"),
            "{lines:?}"
        );
    }
}
