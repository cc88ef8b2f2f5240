//! `cargo xtask report`: pictures, tables and a page from docs/benchmarks.
//!
//! ```text
//! sources: files --[trees, suites, paper, laid_out]--> data --[text]--> blocks of README.md and docs
//!                                                        \--[pictures, sections, page]--> SVGs, docs/report
//! ```
//!
//! The planner lays out the plans that are shown, so all but the command itself is there only with the feature
//! `replay`: the program that the user starts builds itself once more with it.

#[cfg(feature = "replay")]
mod ampere;
#[cfg(feature = "replay")]
mod axis;
#[cfg(feature = "replay")]
mod figure;
#[cfg(feature = "replay")]
mod laid_out;
#[cfg(feature = "replay")]
mod outputs;
#[cfg(feature = "replay")]
mod page;
#[cfg(feature = "replay")]
mod paper;
#[cfg(feature = "replay")]
mod pictures;
#[cfg(all(test, feature = "replay"))]
mod quotes;
#[cfg(feature = "replay")]
mod sections;
#[cfg(feature = "replay")]
mod sources;
#[cfg(feature = "replay")]
mod suites;
#[cfg(feature = "replay")]
mod table;
#[cfg(feature = "replay")]
mod text;
#[cfg(feature = "replay")]
mod trees;

/// Draws docs/report/index.html and docs/figures, and writes the numbers in README.md and docs anew.
///
/// The page is one file without requests; it reads on a phone, light and dark. Everything comes from
/// docs/benchmarks: h100-trees.json, h100-trees-sm80.json, peers-h100.json, h100-pytorch-replay.json and paper-a100.json, and, where
/// they are, h100-scaling.json, h100-paper.json, h100-engine.json, cpu-plan.json and cpu-ratios.json (`deft-bench SUITE
/// --json FILE`). What was not measured has no section. A test compares what is committed with what these
/// files give, and the numbers that README.md quotes with a list.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {}

#[cfg(feature = "replay")]
pub(crate) use outputs::{Data, run};

/// Runs the command in a program that has the planner.
#[cfg(not(feature = "replay"))]
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    use crate::{build_and_run, process};

    let program = build_and_run::build()?;
    process::run(std::process::Command::new(program).arg("report"))
}
