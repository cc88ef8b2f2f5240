//! The kernel crate to one PTX module an architecture.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kernels_gpu::entries::Arch;

use super::toolchain::Toolchain;
use crate::console::say;
use crate::{process, workspace};

const TARGET: &str = "nvptx64-nvidia-cuda";
const PROFILE: &str = "kernels";

/// Flags that every crate of the build gets, `core` included. One set an architecture: another set
/// would build `core` anew.
fn flags(arch: Arch) -> String {
    // PTX ISA 8.0 is the first with sm_90a, 8.3 what the Hopper kernels' instructions need; older
    // PTX keeps older drivers in reach.
    let version = match arch {
        Arch::Sm80 => "ptx80",
        Arch::Sm90a => "ptx83",
    };
    // A plain `panic=abort` leaves calls into core::panicking, which nothing in PTX defines.
    [
        format!("-Ctarget-cpu={}", arch.name()),
        format!("-Ctarget-feature=+{version}"),
        "-Zunstable-options".to_owned(),
        "-Cpanic=immediate-abort".to_owned(),
    ]
    .join("\x1f")
}

/// PTX of the whole kernel crate for `arch`, as rustc writes it.
pub(crate) fn compile(toolchain: &Toolchain, arch: Arch) -> Result<String> {
    let folder = workspace::target().join("kernels").join(arch.name());
    let crates = folder.join(TARGET).join(PROFILE).join("deps");
    // The crate is an rlib, and assembly its by-product: nothing is linked.
    let mut command = toolchain.cargo();
    command
        .args(["rustc", "--locked", "--package", "kernels-gpu", "--lib"])
        .args(["--profile", PROFILE, "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&folder)
        .args(["--", "--emit=asm"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(arch));
    remove_assembly(&crates)?;
    let output = process::capture(&mut command, &format!("kernels for {}", arch.name()))?;
    show_warnings(&output.stderr);
    let files = assembly(&crates)?;
    ensure!(
        files.len() == 1,
        "rustc left {} assembly files in {}, one was expected",
        files.len(),
        workspace::shown(&crates)
    );
    let text = fs::read_to_string(&files[0])
        .with_context(|| format!("cannot read {}", workspace::shown(&files[0])))?;
    let root = workspace::root().to_string_lossy();
    ensure!(
        !text.contains(&*root),
        "the PTX for {} names this machine's folder {root}",
        arch.name()
    );
    Ok(text)
}

/// Assembly of former builds: its file name changes with the compiler.
fn remove_assembly(folder: &Path) -> Result<()> {
    // Cargo takes a crate whose assembly is gone for fresh, so its fingerprint goes too.
    for file in assembly(folder)? {
        fs::remove_file(file)?;
    }
    if let Some(profile) = folder.parent() {
        for entry in read(&profile.join(".fingerprint"))? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("kernels-gpu-") {
                fs::remove_dir_all(entry)?;
            }
        }
    }
    Ok(())
}

fn assembly(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = read(folder)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "s"));
    Ok(files)
}

/// What is in `folder`; nothing if it does not exist.
fn read(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in folder.read_dir()? {
        paths.push(entry?.path());
    }
    Ok(paths)
}

/// Passes on the compiler's warnings, less the one about `-Ctarget-feature` and cargo's counts.
fn show_warnings(stderr: &str) {
    for paragraph in stderr.split("\n\n") {
        let known = paragraph.contains("unstable feature specified for `-Ctarget-feature`");
        if paragraph.contains("warning: ") && paragraph.contains("-->") && !known {
            say(paragraph.trim());
        }
    }
}
