//! The kernel crate to one PTX module an architecture.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kernels_gpu::entries::Arch;

use super::toolchain::Toolchain;
use crate::console::say;
use crate::{process, workspace};

const TARGET: &str = "nvptx64-nvidia-cuda";
const PACKAGE: &str = "deft-kernels";
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
        // Accumulators are arrays: what indexes them must be unrolled, or they go to local memory.
        "-Cllvm-args=-unroll-threshold=6000".to_owned(),
    ]
    .join("\x1f")
}

/// PTX of the whole kernel crate for `arch`, as rustc writes it.
pub(crate) fn compile(toolchain: &Toolchain, arch: Arch) -> Result<String> {
    let folder = workspace::target().join("kernels").join(arch.name());
    // The crate is an rlib, and assembly its by-product: nothing is linked.
    let mut command = toolchain.cargo();
    command
        .args(["rustc", "--locked", "--package", PACKAGE, "--lib"])
        .args(["--profile", PROFILE, "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&folder)
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--", "--emit=asm", "-Dwarnings"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(arch));
    let output = process::capture(&mut command, &format!("kernels for {}", arch.name()))?;
    show_warnings(&output.stderr);
    let path = assembly(&output.stdout)
        .with_context(|| format!("`{}` reports no crate", process::shown(&command)))?;
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "rustc left no assembly {}: remove {} and try again",
            workspace::shown(&path),
            workspace::shown(&folder)
        )
    })?;
    let root = workspace::root().to_string_lossy();
    ensure!(
        !text.contains(&*root),
        "the PTX for {} names this machine's folder {root}",
        arch.name()
    );
    Ok(text)
}

/// Where the assembly is, from cargo's messages: beside the crate's metadata.
fn assembly(messages: &str) -> Option<PathBuf> {
    let metadata = process::artifacts(messages)
        .filter(|artifact| {
            artifact
                .filenames
                .iter()
                .any(|file| file.to_string_lossy().contains("libkernels_gpu"))
        })
        .flat_map(|artifact| artifact.filenames)
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "rmeta")
        })?;
    let name = metadata.file_stem()?.to_str()?.strip_prefix("lib")?;
    Some(metadata.with_file_name(format!("{name}.s")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembly_is_beside_the_kernel_crates_metadata() {
        let messages = r#"
{"reason":"compiler-artifact","package_id":"path+file:///sysroot/core#0.0.0","filenames":["/t/deps/libcore-1.rmeta"]}
{"reason":"compiler-artifact","package_id":"path+file:///c/kernels-gpu#0.1.0","filenames":["/t/libkernels_gpu.rlib","/t/deps/libkernels_gpu-2a.rmeta"]}
{"reason":"build-finished","success":true}
"#;
        let path = assembly(messages).unwrap();
        assert_eq!(path, PathBuf::from("/t/deps/kernels_gpu-2a.s"));
    }
}
