//! A crate of kernels to one PTX module an architecture.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use device::Arch;
use serde::Deserialize;

use crate::toolchain::Toolchain;
use crate::{Event, Listener, process};

const TARGET: &str = "nvptx64-nvidia-cuda";

/// The release profile of a crate whose only product is its assembly: one unit, and no unwinding.
const PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
];

/// Flags that every crate of the build gets, `core` included. One set an architecture: another set
/// would build `core` anew.
pub(crate) fn flags(arch: Arch) -> String {
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
        // Accumulators are arrays: what indexes them must be unrolled, or they go to local memory.
        "-Cllvm-args=-unroll-threshold=6000".to_owned(),
    ]
    .join("\x1f")
}

/// PTX of the whole crate in `folder`, with `features`, for `arch`, as rustc writes it.
pub(crate) fn compile(
    toolchain: &Toolchain,
    folder: &Path,
    (target, features): (&Path, &str),
    arch: Arch,
    listener: &Listener<'_>,
) -> Result<String> {
    let manifest = folder.join("Cargo.toml");
    // The crate is an rlib, and assembly its by-product: nothing is linked.
    let mut command = toolchain.cargo(folder);
    command
        .args(["rustc", "--lib", "--release", "--manifest-path"])
        .arg(&manifest)
        .args(["--features", features, "--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(target)
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--", "--emit=asm", "-Dwarnings"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(arch))
        .envs(PROFILE);
    let (stdout, stderr) = process::capture(&mut command, "kernels", listener)?;
    pass_warnings(&stderr, listener);
    let path = assembly(&stdout, &manifest)
        .with_context(|| format!("`{}` reports no crate", process::shown(&command)))?;
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "rustc left no assembly {}: remove {} and try again",
            path.display(),
            target.display()
        )
    })?;
    let here = folder.to_string_lossy();
    ensure!(
        !text.contains(&*here),
        "the PTX for {} names this machine's folder {here}",
        arch.name()
    );
    Ok(text)
}

/// What cargo reports of a finished target.
#[derive(Deserialize)]
struct Artifact {
    manifest_path: PathBuf,
    filenames: Vec<PathBuf>,
}

/// Where the assembly is, from cargo's messages: beside the metadata of the crate with that manifest.
fn assembly(messages: &str, manifest: &Path) -> Option<PathBuf> {
    let metadata = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .filter(|artifact| artifact.manifest_path == manifest)
        .flat_map(|artifact| artifact.filenames)
        .find(|path| path.extension().is_some_and(|extension| extension == "rmeta"))?;
    let name = metadata.file_stem()?.to_str()?.strip_prefix("lib")?;
    Some(metadata.with_file_name(format!("{name}.s")))
}

/// Passes on the compiler's warnings, less the one about `-Ctarget-feature` and cargo's counts.
fn pass_warnings(stderr: &str, listener: &Listener<'_>) {
    for paragraph in stderr.split("\n\n") {
        let known = paragraph.contains("unstable feature specified for `-Ctarget-feature`");
        if paragraph.contains("warning: ") && paragraph.contains("-->") && !known {
            listener(Event::Note(paragraph.trim()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembly_is_beside_the_kernel_crates_metadata() {
        let messages = r#"
{"reason":"compiler-artifact","manifest_path":"/sysroot/core/Cargo.toml","filenames":["/t/deps/libcore-1.rmeta"]}
{"reason":"compiler-artifact","manifest_path":"/c/kernels-gpu/Cargo.toml","filenames":["/t/libkernels_gpu.rlib","/t/deps/libkernels_gpu-2a.rmeta"]}
{"reason":"build-finished","success":true}
"#;
        let path = assembly(messages, Path::new("/c/kernels-gpu/Cargo.toml")).unwrap();
        assert_eq!(path, PathBuf::from("/t/deps/kernels_gpu-2a.s"));
    }
}
