//! The Python door: its wheel, in an environment of its own, and the wheel's tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::Outcome;
use crate::process;
use crate::workspace::{root, target};

/// What the environment has besides the wheel.
const PACKAGES: [&str; 3] = ["maturin>=1.9,<2", "numpy", "pytest"];

/// Builds the wheel, installs it and runs its tests.
pub(crate) fn test() -> Result<Outcome> {
    let works = |python: &&str| Command::new(python).arg("--version").output().is_ok();
    let Some(python) = ["python3", "python"].into_iter().find(works) else {
        return Ok(Outcome::Skipped("there is no Python".to_owned()));
    };
    let (environment, wheels) = (target().join("doors-venv"), target().join("wheels"));
    let program = environment.join("bin/python");
    // Without pip: Debian's Python has no ensurepip. Its own pip installs into the environment.
    process::run(Command::new(python).args(["-m", "venv", "--without-pip"]).arg(&environment))?;
    pip(python, &program, &PACKAGES.map(Path::new))?;
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    let mut build = Command::new(environment.join("bin/maturin"));
    build.args(["build", "--quiet", "--locked", "--profile=dev", "--out"]).arg(&wheels);
    build.arg("--interpreter").arg(&program);
    process::run(build.current_dir(root().join("doors/python")))?;
    let wheel = fs::read_dir(&wheels)?.next().context("maturin made no wheel")??.path();
    pip(python, &program, &["--force-reinstall".as_ref(), "--no-deps".as_ref(), wheel.as_path()])?;
    let mut tests = Command::new(&program);
    tests.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "doors/python/tests"]);
    process::run(tests.current_dir(root()))?;
    Ok(Outcome::Done)
}

fn pip(python: &str, program: &Path, packages: &[&Path]) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(program);
    process::run(command.args(["install", "--quiet"]).args(packages))
}
