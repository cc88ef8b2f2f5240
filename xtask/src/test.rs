//! `cargo xtask test`: everything that CI checks, in the order of what fails fastest.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::console::{Outcome, Steps};
use crate::process::{self, cargo};
use crate::{bundle, kernels, python};

/// Checks everything: formatting, lints, documentation, kernels, tests, the Python package, miri.
///
/// All steps run even if one fails; the summary names those that did. Kernels are compiled and
/// assembled anew and compared with the PTX in the repository. Nothing needs a GPU: kernels run on
/// the emulator. What a machine lacks is installed if it can be (Debian packages as root, PyPI
/// wheels into target/); miri is used where it is and skipped aloud elsewhere. Licences, sources, doubled
/// and unused dependencies are among the tests (xtask/tests/dependencies.rs).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run these steps only, e.g. `--only lint,test`.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<Step>,

    /// Run the rustup command that installs what is missing instead of naming it.
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// cargo fmt --check
    Format,
    /// cargo clippy, warnings are errors
    Lint,
    /// rustdoc, warnings are errors
    Doc,
    /// Rust to PTX, ptxas, comparison with the committed PTX
    Kernels,
    /// cargo test of all crates, examples in the documentation included
    Test,
    /// the Python package: its wheel, and pytest
    Python,
    /// the token forest and the planner under miri
    Miri,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    for step in Step::value_variants() {
        if args.only.is_empty() || args.only.contains(step) {
            step.run(&mut steps, args.yes);
        }
    }
    steps.finish()
}

impl Step {
    fn run(self, steps: &mut Steps, yes: bool) {
        match self {
            Self::Format => steps.run("format", "rustfmt --check", || {
                finish(cargo().args(["fmt", "--all", "--", "--check"]))
            }),
            Self::Lint => steps.run("lint", "clippy, all targets, warnings are errors", || {
                let mut command = cargo();
                command
                    .args(["clippy", "--workspace", "--all-targets"])
                    .args(features())
                    .args(["--", "-D", "warnings"]);
                finish(&mut command)
            }),
            Self::Doc => steps.run("doc", "rustdoc, warnings are errors", || {
                let mut command = cargo();
                command
                    .args(["doc", "--workspace", "--no-deps"])
                    .args(features())
                    .env("RUSTDOCFLAGS", "-D warnings");
                finish(&mut command)
            }),
            Self::Kernels => {
                steps.run("kernels", "Rust to PTX, ptxas, compare", || kernels::verify(yes));
            }
            Self::Test => steps.run("test", "all crates, kernels on the emulator", || {
                let mut command = cargo();
                command.args(["test", "--workspace", "--no-fail-fast"]).args(features());
                finish(&mut command)
            }),
            Self::Python => steps.run("python", "a wheel by maturin, and pytest", python::test),
            Self::Miri => steps.run("miri", "token forest and planner", miri),
        }
    }
}

/// Every feature that builds here: all, where `cust` is among them.
fn features() -> &'static [&'static str] {
    if bundle::HAS_CUST {
        &["--all-features"]
    } else {
        &[
            "--exclude=cuda-loader",
            "--features=deft-search/cuda,deft-tests/cuda,deft-workloads/cuda",
        ]
    }
}

fn finish(command: &mut Command) -> Result<Outcome> {
    process::run(command).map(|()| Outcome::Done)
}

fn miri() -> Result<Outcome> {
    let has_miri = |toolchain: &PathBuf| {
        toolchain.join("bin/cargo-miri").is_file()
            && toolchain.join("lib/rustlib/src/rust/library").is_dir()
    };
    let Some(toolchain) = ptx_builder::rustup_toolchains().into_iter().find(has_miri) else {
        return Ok(Outcome::Skipped(
            "no toolchain with miri (rustup +nightly component add miri rust-src)".to_owned(),
        ));
    };
    // Random forests take minutes under miri: the tests with fixed inputs run here.
    let suites: [&[&str]; 2] = [
        &["--package=deft-attention", "--lib", "--", "tree::", "plan::"],
        &["--package=deft-tests", "--test=cpu", "--", "forest::hostile::"],
    ];
    for suite in suites {
        let mut command = Command::new("rustup");
        command
            .arg("run")
            .arg(toolchain.file_name().unwrap_or_default())
            .args(["cargo", "miri", "test"])
            .args(suite)
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .current_dir(crate::workspace::root());
        process::run(&mut command)?;
    }
    Ok(Outcome::Done)
}
