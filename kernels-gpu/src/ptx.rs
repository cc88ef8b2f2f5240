//! The kernels as PTX, embedded: whoever uses this crate needs neither a GPU compiler nor a nightly. And for each
//! kernel a record of its arguments by name.
//!
//! `cargo xtask build-kernels` writes what is included here, from the kernels' declarations.

use crate::Arch;

include!("../ptx/kernels.rs");

/// The module that has `entry` for `arch`.
pub fn image(entry: &str, arch: Arch) -> Option<&'static Image> {
    let has = |image: &&Image| image.entries.iter().any(|each| each.name == entry);
    IMAGES
        .iter()
        .filter(|image| image.arch == arch.name())
        .find(has)
}

/// How the embedded kernel `entry` for `arch` is launched.
pub fn entry(entry: &str, arch: Arch) -> Option<&'static Entry> {
    image(entry, arch)?
        .entries
        .iter()
        .find(|each| each.name == entry)
}
