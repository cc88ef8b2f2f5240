//! `cargo xtask chart`: the figure and the numbers in the documentation, from docs/benchmarks.

mod measurements;
mod svg;
mod text;

use std::fs;

use anyhow::{Context, Result};

use self::measurements::Comparison;
use crate::workspace;

/// Draws docs/figures/trees.svg and writes the numbers in README.md and docs/performance.md anew.
///
/// They come from docs/benchmarks: h100-trees.json (`deft-bench trees --json`), peers-h100.json and
/// h100-pytorch-replay.json. A test compares what is committed with what these files give.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<()> {
    for (path, text) in outputs()? {
        let path = workspace::root().join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", workspace::shown(&path));
    }
    Ok(())
}

/// Files, by their path in the repository, as they should be.
fn outputs() -> Result<Vec<(&'static str, String)>> {
    let comparison = Comparison::new(
        &read("docs/benchmarks/h100-trees.json")?,
        &read("docs/benchmarks/peers-h100.json")?,
        &read("docs/benchmarks/h100-pytorch-replay.json")?,
    )?;
    let readme = text::fill(&read("README.md")?, "summary", &text::summary(&comparison))?;
    let performance = read("docs/performance.md")?;
    let performance = text::fill(&performance, "comparison", &text::comparison(&comparison))?;
    let performance = text::fill(&performance, "groupings", &text::groupings(&comparison))?;
    Ok(vec![
        ("docs/figures/trees.svg", svg::draw(&comparison)),
        ("README.md", readme),
        ("docs/performance.md", performance),
    ])
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace::root().join(path)).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_the_measurements_that_are_committed() {
        for (path, text) in outputs().unwrap() {
            let committed = read(path).unwrap();
            assert!(committed == text, "{path}: run `cargo xtask chart`");
        }
    }
}
