//! Files of docs/benchmarks, and what each says of how it was made.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::workspace;

/// Where measurements are.
const FOLDER: &str = "docs/benchmarks";

/// The text of a file of the repository.
pub(super) fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace::root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// The text of a file of docs/benchmarks; `None` if it is not there.
pub(super) fn measured(name: &str) -> Result<Option<String>> {
    let path = format!("{FOLDER}/{name}");
    if !workspace::root().join(&path).exists() {
        return Ok(None);
    }
    read(&path).map(Some)
}

/// How a file came to be.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Origin {
    #[serde(skip)]
    pub(super) file: String,
    pub(super) device: Option<String>,
    pub(super) driver: Option<String>,
    pub(super) commit: Option<String>,
    pub(super) command: Option<String>,
    pub(super) commit_date: Option<String>,
    pub(super) date: Option<String>,
    /// Where numbers that were measured apart are from.
    pub(super) source: Option<String>,
    pub(super) method: Option<String>,
}

impl Origin {
    /// That of the file `name` with `text` in it.
    pub(super) fn of(name: &str, text: &str) -> Result<Self> {
        let origin: Self =
            serde_json::from_str(text).with_context(|| format!("{FOLDER}/{name}"))?;
        Ok(Self {
            file: name.to_owned(),
            ..origin
        })
    }

    /// What the file says of itself, by name.
    pub(super) fn facts(&self) -> Vec<(&'static str, &str)> {
        let facts = [
            ("command", &self.command),
            ("device", &self.device),
            ("driver", &self.driver),
            ("commit", &self.commit),
            ("day of the commit", &self.commit_date),
            ("date", &self.date),
            ("source", &self.source),
            ("method", &self.method),
        ];
        let known = facts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)));
        known.filter(|(_, value)| !value.is_empty()).collect()
    }
}

/// Rows of one suite, and how they were made.
#[derive(Clone, Debug)]
pub(super) struct Suite<Row> {
    pub(super) origin: Origin,
    pub(super) rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Rows<Row> {
    rows: Vec<Row>,
}

impl<Row: DeserializeOwned> Suite<Row> {
    /// From the file `name` with `text` in it.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        let rows: Rows<Row> =
            serde_json::from_str(text).with_context(|| format!("{FOLDER}/{name}"))?;
        Ok(Self {
            origin: Origin::of(name, text)?,
            rows: rows.rows,
        })
    }

    /// From docs/benchmarks; `None` if the file is not there or has no row yet.
    pub(super) fn read(name: &str) -> Result<Option<Self>> {
        let suite = measured(name)?
            .map(|text| Self::parse(name, &text))
            .transpose()?;
        Ok(suite.filter(|suite| !suite.rows.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_how_it_was_made_and_leaves_out_what_it_does_not_know() {
        let text = r#"{"suite": "x", "device": "d", "driver": null, "commit": "", "command": "c", "rows": [1]}"#;
        let suite = Suite::<u32>::parse("f.json", text).unwrap();
        assert_eq!(suite.origin.facts(), [("command", "c"), ("device", "d")]);
        assert_eq!(
            (suite.origin.file.as_str(), suite.rows),
            ("f.json", vec![1])
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_no_error_and_a_broken_one_is_named() {
        assert!(Suite::<u32>::read("no-such-file.json").unwrap().is_none());
        let error = Suite::<u32>::parse("f.json", "{").err().unwrap();
        assert_eq!(error.to_string(), "docs/benchmarks/f.json");
    }
}
