//! `cargo xtask build-kernels`: the kernel crate to PTX, checked by ptxas.
//!
//! ```text
//! kernels-gpu --[compile: rustc, nvptx64]--> one module --[ptx: launch bounds, split]--> groups
//!             --[ptxas: registers, no spills]--> kernels-gpu/ptx/<arch>/<group>.ptx + table
//! ```

mod compile;
pub(crate) mod debian;
mod manifest;
mod ptx;
mod ptxas;
pub(crate) mod toolchain;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kernels_gpu::entries::{self, Arch, ENTRIES};

use crate::console::{Outcome, Steps, say};
use crate::workspace;
use manifest::Manifest;
use toolchain::Toolchain;

/// Compiles the GPU kernels to PTX and writes it to kernels-gpu/ptx, with its table.
///
/// Uses a Rust toolchain that has the standard library's source; if there is none, installs Debian's
/// (as root) or names the rustup command. Assembles everything with ptxas, from the CUDA toolkit if
/// one is on PATH, else from PyPI: spills, stack frames and warnings are errors.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build for this architecture only.
    #[arg(long)]
    arch: Option<Arch>,

    /// Write nothing; fail if kernels-gpu/ptx is not what the source gives.
    #[arg(long)]
    check: bool,

    /// Write each kernel's machine code (SASS) into this folder.
    #[arg(long, value_name = "DIR")]
    sass: Option<PathBuf>,

    /// Run the rustup command that installs what is missing instead of naming it.
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let archs = args.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]);
    let action = if args.check {
        "comparing with"
    } else {
        "writing"
    };
    let what = format!(
        "Rust to PTX for {}, {action} kernels-gpu/ptx",
        names(&archs)
    );
    steps.run("kernels", &what, || {
        let check = Assembly::All {
            sass: args.sass.as_deref(),
        };
        let built = build(&archs, args.yes, check)?;
        if !args.check {
            built.write()?;
        } else if let Some(other) = built.incomparable()? {
            bail!("{other}: install that one to compare");
        } else {
            built.require_committed()?;
        }
        Ok(Outcome::Done)
    });
    steps.finish()
}

/// Builds all kernels and compares with what is committed, if that was made by the same compiler.
pub(crate) fn verify(yes: bool) -> Result<Outcome> {
    let built = build(&Arch::ALL, yes, Assembly::All { sass: None })?;
    match built.incomparable()? {
        Some(other) => say(format!("{other}: not compared")),
        None => {
            built.require_committed()?;
            say("kernels-gpu/ptx is what the source gives");
        }
    }
    Ok(Outcome::Done)
}

/// Builds all kernels, so that kernels-gpu/ptx is what the source gives; only PTX that is new is assembled.
/// The committed PTX serves where it was made by another compiler, with whose output nobody could compare
/// it, and where there is none to be had.
pub(crate) fn refresh(yes: bool) -> Result<Outcome> {
    let manifest = Manifest::load(&folder())?;
    if let Err(error) = toolchain::find_or_install(manifest.rustc(), yes) {
        return Ok(Outcome::Skipped(format!(
            "kernels-gpu/ptx is used as committed, for there is nothing to build it with: {error:#}"
        )));
    }
    let built = build(&Arch::ALL, yes, Assembly::New)?;
    match built.incomparable()? {
        Some(other) => say(format!("{other}: it compiles, and the committed is used")),
        None if built.compare()?.is_empty() => say("kernels-gpu/ptx is what the source gives"),
        None => built.write()?,
    }
    Ok(Outcome::Done)
}

/// Generated files, relative to kernels-gpu/ptx.
struct Built {
    rustc: String,
    archs: Vec<Arch>,
    files: BTreeMap<String, String>,
}

impl Built {
    /// Says so if the committed PTX was made by another compiler, whose output is never the same.
    fn incomparable(&self) -> Result<Option<String>> {
        let committed = Manifest::load(&folder())?;
        let other = committed
            .images
            .into_iter()
            .find(|image| image.rustc != self.rustc);
        Ok(other.map(|image| {
            format!(
                "kernels-gpu/ptx was made with {}, this is {}",
                image.rustc, self.rustc
            )
        }))
    }

    fn require_committed(&self) -> Result<()> {
        let differences = self.compare()?;
        ensure!(
            differences.is_empty(),
            "kernels-gpu/ptx is stale, run `cargo xtask build-kernels`:\n    {}",
            differences.join("\n    ")
        );
        Ok(())
    }

    /// Names what differs between these files and the committed ones.
    fn compare(&self) -> Result<Vec<String>> {
        let folder = folder();
        let mut differences = Vec::new();
        for (file, text) in &self.files {
            match fs::read_to_string(folder.join(file)) {
                Err(_) => differences.push(format!("{file} is missing")),
                Ok(committed) if committed != *text => {
                    differences.push(format!(
                        "{file} differs{}",
                        first_difference(&committed, text)
                    ));
                }
                Ok(_) => {}
            }
        }
        for file in self.superfluous()? {
            differences.push(format!("{} is left over", workspace::shown(&file)));
        }
        Ok(differences)
    }

    fn write(&self) -> Result<()> {
        let folder = folder();
        for file in self.superfluous()? {
            fs::remove_file(file)?;
        }
        for (file, text) in &self.files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("every file is in the folder"))?;
            fs::write(&path, text)
                .with_context(|| format!("cannot write {}", workspace::shown(&path)))?;
        }
        say(format!(
            "wrote {} files to kernels-gpu/ptx",
            self.files.len()
        ));
        Ok(())
    }

    /// Committed PTX of the architectures built that is no longer generated.
    fn superfluous(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for arch in &self.archs {
            let path = folder().join(arch.name());
            if !path.is_dir() {
                continue;
            }
            for entry in path.read_dir()? {
                let entry = entry?;
                let name = format!("{}/{}", arch.name(), entry.file_name().to_string_lossy());
                if !self.files.contains_key(&name) {
                    files.push(entry.path());
                }
            }
        }
        Ok(files)
    }
}

fn first_difference(old: &str, new: &str) -> String {
    let differing = old
        .lines()
        .zip(new.lines())
        .position(|(old, new)| old != new);
    differing.map_or(String::new(), |line| format!(" from line {}", line + 1))
}

fn folder() -> PathBuf {
    workspace::root().join("kernels-gpu/ptx")
}

fn names(archs: &[Arch]) -> String {
    archs
        .iter()
        .map(|arch| arch.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// GPUs that run what is compiled for `arch`, as ptxas names them.
fn targets(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::Sm80 => &["sm_80", "sm_86", "sm_89"],
        Arch::Sm90a => &["sm_90a"],
    }
}

/// Which PTX is assembled, and so checked.
#[derive(Clone, Copy)]
enum Assembly<'a> {
    /// All of it; machine code goes into `sass`.
    All { sass: Option<&'a Path> },
    /// What is not in kernels-gpu/ptx already, whose content once passed. None of another compiler's, for
    /// it will not go there.
    New,
}

impl Assembly<'_> {
    fn includes(self, file: &str, text: &str, comparable: bool) -> bool {
        let is_old = || fs::read_to_string(folder().join(file)).is_ok_and(|old| old == text);
        matches!(self, Self::All { .. }) || comparable && !is_old()
    }
}

fn build(archs: &[Arch], yes: bool, assembly: Assembly<'_>) -> Result<Built> {
    let mut manifest = Manifest::load(&folder())?;
    let toolchain = toolchain::find_or_install(manifest.rustc(), yes)?;
    say(format!("compiler: {}", toolchain.version));
    let comparable = manifest
        .rustc()
        .is_none_or(|rustc| rustc == toolchain.version);
    let mut files = BTreeMap::new();
    for arch in archs {
        let groups = ptx::split(&compile::compile(&toolchain, *arch)?, ENTRIES, *arch)?;
        manifest.replace(*arch, &toolchain.version, &groups);
        for (group, text) in groups {
            let file = manifest::file_name(*arch, group);
            if assembly.includes(&file, &text, comparable) {
                let sass = match assembly {
                    Assembly::All { sass } => sass,
                    Assembly::New => None,
                };
                assemble(&ptxas::find_or_fetch()?, *arch, group, &text, sass)?;
            }
            files.insert(file, text);
        }
    }
    files.insert(manifest::MANIFEST.to_owned(), manifest.to_json());
    files.insert(manifest::IMAGES.to_owned(), manifest.to_rust());
    let Toolchain { version: rustc, .. } = toolchain;
    Ok(Built {
        rustc,
        archs: archs.to_vec(),
        files,
    })
}

/// Assembles one module for every GPU it is meant for and prints what its entries need.
fn assemble(ptxas: &Path, arch: Arch, group: &str, text: &str, sass: Option<&Path>) -> Result<()> {
    let scratch = workspace::target().join("kernels/assembled");
    fs::create_dir_all(&scratch)?;
    let ptx = scratch.join(format!("{}-{group}.ptx", arch.name()));
    fs::write(&ptx, text)?;
    for target in targets(arch) {
        let cubin = scratch.join(format!("{target}-{group}.cubin"));
        for usage in ptxas::assemble(ptxas, &ptx, target, &cubin)? {
            let row = entries::find(&usage.entry, arch).context("ptxas invented an entry")?;
            say(format!(
                "{target:<7} {:<32} {:>3} registers x {:>4} threads, {:>6} bytes of shared memory",
                usage.entry, usage.registers, row.threads, row.shared_bytes
            ));
        }
        if let Some(folder) = sass {
            fs::create_dir_all(folder)?;
            ptxas::disassemble(&cubin, &folder.join(format!("{target}-{group}.sass")))?;
        }
    }
    Ok(())
}
