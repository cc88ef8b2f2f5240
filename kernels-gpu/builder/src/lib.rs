//! Compiles a crate of GPU kernels, in Rust, to PTX, in the shape of rust-cuda's `cuda_builder`.
//!
//! ```text
//! crate --[rustc, nvptx64]--> a module an architecture --[launch bounds, split]--> a module a group
//!       --[ptxas, nvdisasm: no spills, no local memory, budgets]--> <arch>/<group>.ptx, manifest.json, kernels.rs
//! ```
//!
//! Kernels are declared by `#[kernel]` of the crate `deft-kernel-macros`, whose record of bounds and parameters stands
//! in the PTX. The compiler is any Rust 1.95 or later that has the source of `core` (rustup's `rust-src`, Debian's
//! `rust-web-src`); ptxas is taken from a CUDA toolkit on `PATH`, else from PyPI.
//!
//! ```no_run
//! use deft_ptx_builder::{Arch, Event, PtxBuilder};
//!
//! # fn main() -> anyhow::Result<()> {
//! let say = |event: Event<'_>| {
//!     if let Event::Note(line) = event {
//!         println!("{line}");
//!     }
//! };
//! let mut builder = PtxBuilder::new("kernels").arch(Arch::Sm90a).copy_to("kernels/ptx");
//! builder.listener = &say;
//! if !builder.is_current()? {
//!     builder.build()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The host includes `kernels.rs`, where it has declared `Image`, `Entry` and the macro `arguments!`, as
//! `kernels-gpu/src/ptx.rs` does: the PTX as `IMAGES`, and for each kernel a record of its arguments by name.

mod assemble;
mod budget;
mod compile;
mod debian;
mod manifest;
mod maps;
mod process;
mod ptx;
mod ptxas;
mod record;
mod rust;
mod sass;
mod source;
#[cfg(test)]
mod tests;
mod toolchain;
pub mod wheel;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

pub use device::Arch;
pub use manifest::Manifest;
pub use toolchain::{NoToolchain, rustup_toolchains};

use assemble::Job;
use budget::Policy;
use toolchain::Toolchain;

/// What a build tells whoever waits for it.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A line worth keeping.
    Note(&'a str),
    /// `what` is under way; told several times a second. Bytes are those fetched, and all, where that is known.
    Working {
        /// What is done.
        what: &'a str,
        /// Bytes so far, and all of them.
        bytes: Option<(u64, u64)>,
    },
    /// What was under way has ended.
    Idle,
}

/// Where events go. Several threads may call it.
pub type Listener<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// What comparing says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The files are what the source gives.
    Same,
    /// They were made by another compiler, whose output is never the same; the text names both.
    OtherCompiler(String),
}

/// A build of a crate of kernels.
#[derive(Clone)]
pub struct PtxBuilder<'a> {
    folder: PathBuf,
    archs: Vec<Arch>,
    output: PathBuf,
    /// Where to compile, and to keep programs that are fetched.
    pub target: PathBuf,
    /// Features of the crate, separated by commas.
    pub features: String,
    /// Files and folders that the PTX is made of, for [`PtxBuilder::is_current`].
    pub sources: Vec<PathBuf>,
    /// Those within them that are of no concern to the PTX.
    pub except: Vec<PathBuf>,
    /// A folder for each kernel's machine code (SASS).
    pub sass: Option<PathBuf>,
    /// Whether the rustup command may run that installs the standard library's source.
    pub may_install: bool,
    /// Whether what kernels need now becomes their budgets, and their numbers of instructions that lanes execute
    /// together what they are now.
    pub accept_growth: bool,
    /// Who is told what happens.
    pub listener: &'a Listener<'a>,
}

impl PtxBuilder<'_> {
    /// Builds the crate in `folder`, by default for all architectures and into its folder `ptx`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self {
            archs: Vec::new(),
            output: folder.join("ptx"),
            target: folder.join("target"),
            features: String::new(),
            sources: vec![folder.join("Cargo.toml"), folder.join("src")],
            except: Vec::new(),
            sass: None,
            may_install: false,
            accept_growth: false,
            listener: &|_| {},
            folder,
        }
    }

    /// Builds for `arch`; may be called for several.
    #[must_use]
    pub fn arch(mut self, arch: Arch) -> Self {
        self.archs.push(arch);
        self
    }

    /// Puts the PTX and its tables into `folder`.
    #[must_use]
    pub fn copy_to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.output = folder.into();
        self
    }

    /// Whether the output is of the sources as they are now, and untouched: a matter of hashes, without a compiler.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn is_current(&self) -> Result<bool> {
        let manifest = Manifest::load(&self.output)?;
        for arch in self.archs() {
            let source = self.source(*arch)?;
            let mut images =
                manifest.images.iter().filter(|image| image.arch == arch.name()).peekable();
            if images.peek().is_none() || images.any(|image| image.source != source) {
                return Ok(false);
            }
        }
        let rust = fs::read_to_string(self.output.join(rust::RUST)).unwrap_or_default();
        Ok(rust == rust::source(&manifest)? && manifest.verify(&self.output).is_ok())
    }

    /// Compiles, checks and writes.
    ///
    /// # Errors
    /// [`NoToolchain`]; what compiler and assembler say; spills, stack frames, local memory, serialised `wgmma`; kernels
    /// that outgrew their budgets; files that cannot be written.
    pub fn build(&self) -> Result<()> {
        let policy = if self.accept_growth { Policy::Accept } else { Policy::Lower };
        let files = self.make(policy)?.files;
        for file in self.superfluous(&files)? {
            fs::remove_file(file)?;
        }
        for (file, text) in &files {
            let path = self.output.join(file);
            let folder = path.parent().expect("every file is in the folder");
            fs::create_dir_all(folder)?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.say(format!("wrote {} files to {}", files.len(), self.output.display()));
        Ok(())
    }

    /// Compiles, checks, and compares with what is there; writes nothing.
    ///
    /// # Errors
    /// As [`PtxBuilder::build`], and what differs.
    pub fn check(&self) -> Result<Comparison> {
        let made = self.make(Policy::Compare)?;
        let committed = Manifest::load(&self.output)?;
        let folder = self.output.display();
        if let Some(image) = committed.images.iter().find(|image| image.rustc != made.rustc) {
            let (theirs, ours) = (&image.rustc, &made.rustc);
            let text = format!("{folder} was made with {theirs}, this is {ours}");
            return Ok(Comparison::OtherCompiler(text));
        }
        let differences = self.compare(&made.files)?;
        if !differences.is_empty() {
            bail!(
                "{folder} is stale, build it anew (`cargo xtask build-kernels`):\n    {}",
                differences.join("\n    ")
            );
        }
        Ok(Comparison::Same)
    }

    fn archs(&self) -> &[Arch] {
        if self.archs.is_empty() { &Arch::ALL } else { &self.archs }
    }

    fn say(&self, line: impl AsRef<str>) {
        (self.listener)(Event::Note(line.as_ref()));
    }

    /// The hash of what the PTX for `arch` is made of.
    fn source(&self, arch: Arch) -> Result<String> {
        source::hash(&self.folder, &self.sources, &self.except, &compile::flags(arch))
    }

    /// A module an architecture, side by side: each is one unit of code, which keeps one processor busy.
    fn compile(&self, toolchain: &Toolchain, folder: &Path) -> Result<Vec<String>> {
        let one = |&arch: &Arch| {
            // Cargo locks a target folder.
            let target = self.target.join("kernels").join(arch.name());
            let target = (target.as_path(), &*self.features);
            compile::compile(toolchain, folder, target, arch, self.listener)
        };
        self.archs().par_iter().map(one).collect()
    }

    fn make(&self, policy: Policy) -> Result<Made> {
        let committed = Manifest::load(&self.output)?;
        let toolchain =
            toolchain::find_or_install(committed.rustc(), self.may_install, self.listener)?;
        self.say(format!("compiler: {}", toolchain.version));
        let folder = fs::canonicalize(&self.folder)
            .with_context(|| format!("no crate in {}", self.folder.display()))?;
        let mut manifest = committed.clone();
        let mut files = BTreeMap::new();
        let mut jobs = Vec::new();
        let modules = self.compile(&toolchain, &folder)?;
        for (&arch, module) in self.archs().iter().zip(modules) {
            let groups = ptx::split(&module, arch)?;
            manifest.replace(arch, &toolchain.version, &self.source(arch)?, &groups)?;
            for (name, group) in groups {
                files.insert(manifest::file_name(arch, &name), group.ptx.clone());
                jobs.push(Job { arch, name, group });
            }
        }
        if policy == Policy::Lower {
            budget::compare_collective(&committed, &manifest)?;
        }
        if policy == Policy::Lower && self.sass.is_none() {
            // What was assembled once has its budget and passed all checks.
            jobs.retain(|job| !committed.holds(job.arch, &job.name, &job.group));
        }
        if !jobs.is_empty() {
            let (release, measured) = assemble::all(self, &jobs)?;
            budget::settle(&mut manifest, &release, &measured, policy)?;
        }
        files.insert(manifest::MANIFEST.to_owned(), manifest.to_json());
        files.insert(rust::RUST.to_owned(), rust::source(&manifest)?);
        Ok(Made { rustc: toolchain.version, files })
    }

    /// Names what differs between `files` and the output.
    fn compare(&self, files: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        for (file, text) in files {
            match fs::read_to_string(self.output.join(file)) {
                Err(_) => differences.push(format!("{file} is missing")),
                Ok(committed) if committed != *text => {
                    let lines = committed.lines().zip(text.lines());
                    let line = lines.take_while(|(old, new)| old == new).count() + 1;
                    differences.push(format!("{file} differs from line {line}"));
                }
                Ok(_) => {}
            }
        }
        for file in self.superfluous(files)? {
            differences.push(format!("{} is left over", file.display()));
        }
        Ok(differences)
    }

    /// PTX of the architectures built that is no longer generated.
    fn superfluous(&self, files: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
        let mut left = Vec::new();
        for arch in self.archs() {
            let path = self.output.join(arch.name());
            if !path.is_dir() {
                continue;
            }
            for entry in path.read_dir()? {
                let entry = entry?;
                let name = format!("{}/{}", arch.name(), entry.file_name().to_string_lossy());
                if !files.contains_key(&name) {
                    left.push(entry.path());
                }
            }
        }
        Ok(left)
    }
}

/// Generated files, relative to the output, and the compiler that made them.
struct Made {
    rustc: String,
    files: BTreeMap<String, String>,
}
