//! Where things are.

use std::path::{Path, PathBuf};

/// Root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a member of the workspace")
}

/// Cargo's target folder; `target` in the current folder where there is no checkout, as for a packed program.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => folder.into(),
        None if root().is_dir() => root().join("target"),
        None => "target".into(),
    }
}

/// `path` as seen from the root of the checkout, for messages.
pub(crate) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// README.md, CONTRIBUTING.md and docs/**/*.md, by path.
    fn pages() -> Vec<(PathBuf, String)> {
        let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
        for folder in ["docs", "docs/benchmarks"] {
            let entries = std::fs::read_dir(root().join(folder)).unwrap();
            files.extend(entries.map(|entry| entry.unwrap().path()));
        }
        files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        };
        files.into_iter().map(read).collect()
    }

    #[test]
    fn every_link_of_the_documentation_leads_to_a_file() {
        for (path, text) in pages() {
            let links = text.split("](").skip(1).chain(text.split("src=\"").skip(1));
            for link in links.filter_map(|rest| rest.split([')', '"', '#']).next()) {
                let here = path.parent().unwrap().join(link);
                let found = link.starts_with("https://") || here.exists();
                assert!(found, "{}: {link}", shown(&path));
            }
        }
    }

    #[test]
    fn every_command_that_the_documentation_names_exists() {
        let commands = crate::Cli::command();
        for (path, text) in pages() {
            for rest in text.split("cargo xtask ").skip(1) {
                let name: &str =
                    rest.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap();
                let found = name.starts_with("--") || commands.find_subcommand(name).is_some();
                assert!(found, "{}: cargo xtask {name}", shown(&path));
            }
        }
    }

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
