//! `cargo xtask build-and-run`: the main job.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::{self, Outcome, Steps};
use crate::process::{self, cargo};
use crate::{kernels, replay};

/// Builds everything and replays a recorded tree of decode steps, with each way to group its attention.
///
/// The kernels are compiled to PTX first; the replay then branches and prunes the tree as recorded, plans
/// every step, and on some of them appends K and V, runs one layer's attention (of Llama-3-8B, unless the
/// file has its own shape) and compares rows of the output with f64. It prints, for each grouping, the
/// bytes read, attention's time and planning's, and draws the tree over time to target/replay as an SVG.
/// An attention time is that of the fastest of two calls from the host: on a GPU, copies of queries and
/// outputs are part of it; deft-bench, in the bundle, times the kernels alone.
///
/// Examples:
///   cargo xtask build-and-run
///   cargo xtask build-and-run --workload sorting128ToT --run 3 --grouping flatten
///   cargo xtask build-and-run --workload workloads/trees.json --run spec64_ctx4k --json
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    replay: replay::Args,

    /// Run the rustup command that installs what is missing instead of naming it.
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.replay.json {
        console::leave_stdout();
    }
    let mut steps = Steps::new();
    steps.run("kernels", "Rust to PTX", || kernels::refresh(args.yes));
    let mut program = None;
    if !steps.failed() {
        steps.run("build", "the library and the replay, release", || {
            program = Some(build()?);
            Ok(Outcome::Done)
        });
    }
    if let Some(program) = program {
        let what = args.replay.title();
        steps.run("replay", &what, || {
            let mut command = Command::new(program);
            command.arg("replay").args(args.replay.words());
            process::run(&mut command).map(|()| Outcome::Done)
        });
    }
    steps.finish()
}

/// This program once more, with the replay, the report and the PTX that there is now.
pub(crate) fn build() -> Result<PathBuf> {
    // Feature `cuda` exists for x86-64 Linux only.
    let feature = if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        "cuda"
    } else {
        "replay"
    };
    let mut command = cargo();
    command
        .args(["build", "--release", "--package", "xtask"])
        .args(["--features", feature])
        .args(["--message-format", "json-render-diagnostics"]);
    let output = process::capture(&mut command, "cargo build --release")?;
    let built = process::artifacts(&output.stdout).filter_map(|artifact| artifact.executable);
    let program = built.last();
    program.with_context(|| format!("cargo built no program for `{}`", process::shown(&command)))
}
