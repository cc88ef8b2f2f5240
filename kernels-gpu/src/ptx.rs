//! The kernels as PTX, embedded: whoever uses this crate needs neither a GPU compiler nor a nightly.
//!
//! `cargo xtask build-kernels` writes the files and the table that is included here.

use crate::Arch;

/// One PTX module.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// What it is compiled for.
    pub arch: Arch,
    /// The entries' group; file `ptx/<arch>/<group>.ptx`.
    pub group: &'static str,
    /// Names of its entry points; [`crate::entries::find`] tells how to launch them.
    pub entries: &'static [&'static str],
    /// SHA-256 of `ptx`, hexadecimal.
    pub sha256: &'static str,
    /// The PTX text.
    pub ptx: &'static str,
}

/// All modules.
pub const IMAGES: &[Image] = include!("../ptx/images.rs");

/// The module that has `entry` for `arch`.
pub fn image(entry: &str, arch: Arch) -> Option<&'static Image> {
    IMAGES
        .iter()
        .find(|image| image.arch == arch && image.entries.contains(&entry))
}
