//! `cargo xtask build-kernels`: the kernel crate to PTX, by `deft-ptx-builder`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use ptx_builder::{Arch, Comparison, NoToolchain, PtxBuilder};

use crate::console::{Outcome, Steps, say};
use crate::{progress, workspace};

/// Compiles the GPU kernels to PTX and writes it to kernels-gpu/ptx, with its table.
///
/// Uses a Rust toolchain that has the standard library's source; if there is none, installs Debian's
/// (as root) or names the rustup command. Assembles everything with ptxas, from the CUDA toolkit if
/// one is on PATH, else from PyPI. Errors are: spills, stack frames, warnings, local memory, products that are
/// serialised, and kernels that outgrew their budgets of instructions and registers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build for this architecture only.
    #[arg(long)]
    arch: Option<Arch>,

    /// Write nothing; fail if kernels-gpu/ptx is not what the source gives.
    #[arg(long)]
    check: bool,

    /// Take what kernels need now as their budgets.
    #[arg(long, conflicts_with = "check")]
    accept: bool,

    /// Write each kernel's machine code (SASS) into this folder.
    #[arg(long, value_name = "DIR")]
    sass: Option<PathBuf>,

    /// Build with these features of the kernel crate, separated by commas, into the folder of `--out`:
    /// `every-thread-arrives`, for compute-sanitizer's racecheck.
    #[arg(long, requires = "out", default_value = "")]
    features: String,

    /// Write into this folder instead of kernels-gpu/ptx.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Run the rustup command that installs what is missing instead of naming it.
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut builder = builder(args.yes);
    builder.accept_growth = args.accept;
    builder.sass.clone_from(&args.sass);
    builder.features.clone_from(&args.features);
    if let Some(folder) = &args.out {
        builder = builder.copy_to(folder);
    }
    if let Some(arch) = args.arch {
        builder = builder.arch(arch);
    }
    let action = if args.check { "comparing with" } else { "writing" };
    let folder = args.out.as_deref().unwrap_or(Path::new("kernels-gpu/ptx")).display();
    let what = format!("Rust to PTX, {action} {folder}");
    let mut steps = Steps::new();
    steps.run("kernels", &what, || {
        if !args.check {
            builder.build()?;
        } else if let Comparison::OtherCompiler(other) = builder.check()? {
            bail!("{other}: install that one to compare");
        }
        Ok(Outcome::Done)
    });
    steps.finish()
}

/// Builds all kernels and compares with what is committed, if that was made by the same compiler.
pub(crate) fn verify(yes: bool) -> Result<Outcome> {
    match builder(yes).check()? {
        Comparison::Same => say("kernels-gpu/ptx is what the source gives"),
        Comparison::OtherCompiler(other) => say(format!("{other}: not compared")),
    }
    Ok(Outcome::Done)
}

/// Has kernels-gpu/ptx be what the source gives. What is committed usually is, as hashes tell, and then no compiler is
/// needed; it also serves where there is none to be had.
pub(crate) fn refresh(yes: bool) -> Result<Outcome> {
    let builder = builder(yes);
    if builder.is_current()? {
        say("kernels-gpu/ptx is of these sources");
        return Ok(Outcome::Done);
    }
    match builder.build() {
        Ok(()) => Ok(Outcome::Done),
        Err(error) if error.is::<NoToolchain>() => Ok(Outcome::Skipped(format!(
            "kernels-gpu/ptx is used as committed, for there is nothing to build it with: {error:#}"
        ))),
        Err(error) => Err(error),
    }
}

fn builder(yes: bool) -> PtxBuilder<'static> {
    let kernels = workspace::root().join("kernels-gpu");
    let mut builder = PtxBuilder::new(&kernels);
    for folder in ["device", "macros"] {
        let sources = ["Cargo.toml", "src"].map(|name| kernels.join(folder).join(name));
        builder.sources.extend(sources);
    }
    // Neither is compiled for a GPU.
    builder.except.push(kernels.join("device/src/emulator"));
    builder.except.push(kernels.join("src/ptx.rs"));
    builder.target = workspace::target();
    builder.may_install = yes;
    builder.listener = &progress::show;
    builder
}
