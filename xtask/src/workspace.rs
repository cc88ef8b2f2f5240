//! Where things are.

use std::path::{Path, PathBuf};

/// Root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a member of the workspace")
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `path` as seen from the root of the checkout, for messages.
pub(crate) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_is_explained() {
        let read = |path| std::fs::read_to_string(root().join(path)).unwrap();
        let manifest = read("Cargo.toml");
        let (_, section) = manifest.split_once("[workspace.dependencies]").unwrap();
        let (section, _) = section.split_once("\n[").unwrap();
        let record = read("docs/dependencies.md");
        let silent: Vec<&str> = section
            .lines()
            .filter(|line| !line.contains("path = "))
            .filter_map(|line| Some(line.split_once(" = ")?.0))
            .filter(|name| !record.contains(&format!("`{name}`")))
            .collect();
        assert!(silent.is_empty(), "not in docs/dependencies.md: {silent:?}");
    }
}
