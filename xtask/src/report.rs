//! `cargo xtask report`: a door to the crate in docs/report.

use anyhow::Result;

use crate::process::{self, cargo};

/// Writes the numbers and charts in docs/report/index.html, docs/figures, README.md and docs anew.
///
/// Everything comes from docs/benchmarks. A test compares what is committed with what those files give, and the
/// numbers that README.md quotes with a list.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<()> {
    process::run(cargo().args(["run", "--package", "deft-report"]))
}
