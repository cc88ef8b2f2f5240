//! A rustc that can build `core` for the GPU.
//!
//! rustup ships no `core` for `nvptx64-nvidia-cuda`, so cargo builds it (`-Zbuild-std`), for which the
//! toolchain needs the standard library's source: Debian's `rust-web-src`, or rustup's `rust-src`.
//! `RUSTC_BOOTSTRAP=1` opens the unstable options of a stable compiler.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use anyhow::{Result, ensure};

use crate::{Event, Listener, debian, process};

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The oldest release whose kernels were checked, as in 1.95.
const OLDEST: u32 = 95;

/// A compiler that has the source of `core`.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    bin: PathBuf,
    /// What `rustc --version` says: names the build, Debian's and rustup's of one release apart.
    pub(crate) version: String,
}

impl Toolchain {
    /// Cargo of this toolchain, using its rustc, whatever toolchain runs this program.
    pub(crate) fn cargo(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.bin.join("cargo"));
        command.current_dir(folder);
        for (name, _) in env::vars_os() {
            let inherited = name.to_string_lossy();
            let ours = inherited.starts_with("CARGO") || inherited.starts_with("RUST");
            let user = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "RUSTUP_"];
            if ours && !user.iter().any(|kept| inherited.starts_with(kept)) {
                command.env_remove(&name);
            }
        }
        command.env("RUSTC", self.bin.join("rustc")).env("RUSTC_BOOTSTRAP", "1");
        command
    }

    fn in_folder(bin: PathBuf) -> Option<Self> {
        let rustc = bin.join("rustc");
        let ask = |argument: &[&str]| {
            let output = Command::new(&rustc).args(argument).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| text.trim().to_owned())
        };
        if !bin.join("cargo").is_file() {
            return None;
        }
        let source = "lib/rustlib/src/rust/library/core/Cargo.toml";
        let sysroot = ask(&["--print", "sysroot"])?;
        if !Path::new(&sysroot).join(source).is_file() {
            return None;
        }
        let version = ask(&["--version"])?;
        (minor(&version)? >= OLDEST).then_some(Self { bin, version })
    }
}

/// The 95 of `rustc 1.95.0 (...)`.
fn minor(version: &str) -> Option<u32> {
    let release = version.strip_prefix("rustc 1.")?;
    release.split('.').next()?.parse().ok()
}

/// There is no compiler for kernels here, and none was to be had.
#[derive(Debug)]
pub struct NoToolchain(String);

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoToolchain {}

/// The toolchain to build kernels with: the one of version `recorded` if it is here, else any that
/// can, else one that is installed now. `allowed` permits to install through rustup. The error is [`NoToolchain`].
pub(crate) fn find_or_install(
    recorded: Option<&str>,
    allowed: bool,
    listener: &Listener<'_>,
) -> Result<Toolchain> {
    if let Some(toolchain) = find(recorded) {
        return Ok(toolchain);
    }
    install(allowed, listener).map_err(|error| NoToolchain(format!("{error:#}")))?;
    find(recorded).ok_or_else(|| {
        let missing = "still no toolchain with the standard library's source after installing one";
        NoToolchain(format!(
            "{missing}; `{RUSTUP_COMMAND}` must bring lib/rustlib/src/rust/library into rustc's sysroot"
        ))
        .into()
    })
}

/// The best toolchain that is here.
fn find(recorded: Option<&str>) -> Option<Toolchain> {
    let found: Vec<Toolchain> = folders().into_iter().filter_map(Toolchain::in_folder).collect();
    choose(&found, recorded).cloned()
}

/// The one of version `recorded`, whose output can be compared with what is committed; else the first.
fn choose<'a>(found: &'a [Toolchain], recorded: Option<&str>) -> Option<&'a Toolchain> {
    found.iter().find(|toolchain| Some(toolchain.version.as_str()) == recorded).or(found.first())
}

/// Folders that hold a `rustc`: the system's, then the running toolchain's, then its neighbours (how
/// rustup keeps them), newest name first.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/bin")];
    folders.extend(rustup_toolchains().into_iter().map(|path| path.join("bin")));
    folders
}

/// Toolchains of rustup's, the running one first.
pub fn rustup_toolchains() -> Vec<PathBuf> {
    // .../toolchains/<name>/bin/cargo
    let Some(current) = env::var_os("CARGO")
        .map(PathBuf::from)
        .and_then(|cargo| Some(cargo.parent()?.parent()?.to_owned()))
        .filter(|path| path.parent().and_then(Path::file_name) == Some(OsStr::new("toolchains")))
    else {
        return Vec::new();
    };
    let mut others: Vec<PathBuf> = current
        .parent()
        .and_then(|folder| folder.read_dir().ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| *path != current)
        .collect();
    others.sort();
    others.reverse();
    [vec![current], others].concat()
}

const RUSTUP_COMMAND: &str = "rustup component add rust-src";

fn install(allowed: bool, listener: &Listener<'_>) -> Result<()> {
    let say = |line: &str| listener(Event::Note(line));
    say("no Rust toolchain here has the standard library's source, which kernels need");
    if debian::can_install() {
        match debian::install(&DEBIAN_PACKAGES, listener) {
            Ok(()) => return Ok(()),
            Err(error) => say(&format!("{error:#}")),
        }
    }
    ensure!(
        allowed,
        "kernels need the standard library's source: run `{RUSTUP_COMMAND}`, or allow to (`--yes`)"
    );
    say(&format!("running `{RUSTUP_COMMAND}`"));
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src"]);
    process::capture(&mut command, RUSTUP_COMMAND, listener).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_that_made_the_committed_ptx_is_preferred() {
        let found = ["rustc 1.95.0", "rustc 1.96.0"]
            .map(|version| Toolchain { bin: PathBuf::new(), version: version.to_owned() });
        let chosen = |recorded| choose(&found, recorded).map(|toolchain| &*toolchain.version);
        assert_eq!(chosen(Some("rustc 1.96.0")), Some("rustc 1.96.0"));
        assert_eq!(chosen(Some("rustc 1.90.0")), Some("rustc 1.95.0"));
        assert_eq!(chosen(None), Some("rustc 1.95.0"));
        assert!(choose(&[], None).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_compiler_that_is_old_or_lacks_the_librarys_source_is_passed_over() {
        use std::fs;
        use std::os::unix::fs::PermissionsExt;

        let root = env::temp_dir().join(format!("deft-toolchain-{}", std::process::id()));
        let bin = root.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\n[ $1 = --version ] && cat {0}/version || echo {0}\n",
            root.display()
        );
        for program in ["rustc", "cargo"] {
            fs::write(bin.join(program), &script).unwrap();
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(root.join("version"), "rustc 1.96.0 (a build)\n").unwrap();
        let without = Toolchain::in_folder(bin.clone());
        let source = root.join("lib/rustlib/src/rust/library/core");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("Cargo.toml"), "").unwrap();
        let with = Toolchain::in_folder(bin.clone());
        fs::write(root.join("version"), "rustc 1.63.0").unwrap();
        let old = Toolchain::in_folder(bin);
        fs::remove_dir_all(root).unwrap();

        assert!(without.is_none());
        assert_eq!(with.unwrap().version, "rustc 1.96.0 (a build)");
        assert!(old.is_none());
    }
}
