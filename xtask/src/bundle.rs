//! `cargo xtask bundle`: what a GPU machine needs, in one folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::console::{Outcome, Steps, say};
use crate::process::{self, cargo};
use crate::workspace;

/// Packs the programs, PTX and data that a GPU machine needs into target/bundle.
///
/// The folder is self-contained: copy it to a machine with an NVIDIA driver and start the programs in
/// it. Nothing there needs cargo, rustc or a CUDA toolkit.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The benchmarks.
const BENCH: Program = Program {
    package: "deft-bench",
    kind: "bin",
    name: "deft-bench",
    packed_as: "deft-bench",
    arguments: " --help",
    features: "",
};

/// The search with a language model.
pub(crate) const SEARCH: Program = Program {
    package: "deft-search",
    kind: "bin",
    name: "deft-search",
    packed_as: "deft-search",
    arguments: " --device cuda --model PATH.gguf",
    features: "cuda",
};

/// A recorded tree, step by step, for where there is no model.
pub(crate) const REPLAY: Program = Program {
    package: "deft-workloads",
    kind: "example",
    name: "replay",
    packed_as: "deft-replay",
    arguments: " --device cuda",
    features: "cuda",
};

/// Whether `cust` builds here: it needs the stubs of cuda-loader.
pub(crate) const HAS_CUST: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

/// What is built for the bundle. A test program takes libtest's arguments.
const PROGRAMS: &[Program] = &[
    Program {
        package: "deft-attention",
        kind: "test",
        name: "cuda_links",
        packed_as: "cuda_links",
        arguments: "",
        features: "cust",
    },
    gpu_suite("gpu"),
    gpu_suite("gpu_ranks"),
    BENCH,
    SEARCH,
    REPLAY,
];

/// A suite of `tests` that needs a GPU.
const fn gpu_suite(name: &'static str) -> Program {
    Program {
        package: "deft-tests",
        kind: "test",
        name,
        packed_as: name,
        arguments: " --nocapture",
        features: "cuda",
    }
}

/// Folders that go along: from the checkout's root to the bundle's.
const FOLDERS: &[(&str, &str)] = &[("kernels-gpu/ptx", "ptx"), ("workloads", "workloads")];

/// A program that cargo builds.
pub(crate) struct Program {
    package: &'static str,
    /// Cargo's word for the target's kind: `bin`, `test` or `example`.
    kind: &'static str,
    name: &'static str,
    /// Its name in the bundle.
    packed_as: &'static str,
    /// How to start it, for people.
    arguments: &'static str,
    features: &'static str,
}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let bundle = workspace::target().join("bundle");
    let what = format!("release programs and data into {}", workspace::shown(&bundle));
    steps.run("bundle", &what, || {
        if bundle.exists() {
            fs::remove_dir_all(&bundle)?;
        }
        fs::create_dir_all(&bundle)?;
        let programs = || PROGRAMS.iter().filter(|program| HAS_CUST || program.features != "cust");
        for program in programs() {
            let built = program.build()?;
            copy(&built, &bundle.join(program.packed_as))?;
        }
        for (from, to) in FOLDERS {
            copy(&workspace::root().join(from), &bundle.join(to))?;
        }
        say(format!(
            "{:.1} MB in {}; on the GPU machine, in that folder:",
            size(&bundle)? as f64 / 1e6,
            workspace::shown(&bundle)
        ));
        for program in programs() {
            say(format!("    ./{}{}", program.packed_as, program.arguments));
        }
        Ok(Outcome::Done)
    });
    steps.finish()
}

/// Builds the benchmarks and returns the program's path.
pub(crate) fn build_bench() -> Result<PathBuf> {
    BENCH.build()
}

impl Program {
    /// Builds it in release mode and returns its path.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        let mut command = cargo();
        match self.kind {
            "test" => command.args(["test", "--no-run"]),
            _ => command.arg("build"),
        };
        command
            .arg("--release")
            .args(["--package", self.package, "--features", self.features])
            .args([&format!("--{}", self.kind), self.name])
            .args(["--message-format", "json-render-diagnostics"])
            // Results name the commit they were measured at.
            .env("DEFT_COMMIT", commit())
            .env("DEFT_COMMIT_DATE", commit_date());
        let messages = process::capture(&mut command)?;
        let built = process::artifacts(&messages).filter_map(|artifact| artifact.executable).last();
        match built {
            Some(path) => Ok(path),
            None => bail!("cargo built no program for `{}`", process::shown(&command)),
        }
    }
}

/// The day of the commit that is checked out; empty without git.
fn commit_date() -> String {
    git(&["show", "--no-patch", "--format=%cs", "HEAD"])
}

/// The commit that is checked out, `+` if files differ from it; empty without git.
fn commit() -> String {
    let changed = !git(&["status", "--porcelain"]).is_empty();
    git(&["rev-parse", "--short=12", "HEAD"]) + if changed { "+" } else { "" }
}

/// What git says; nothing if it fails.
fn git(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new("git");
    let output = command.current_dir(workspace::root()).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in from.read_dir()? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {}", workspace::shown(from)))
}

fn size(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    let mut bytes = 0;
    for entry in path.read_dir()? {
        bytes += size(&entry?.path())?;
    }
    Ok(bytes)
}
