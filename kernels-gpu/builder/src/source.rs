//! A hash over the files that a build reads, so that one can tell without a compiler whether it is up to date.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// SHA-256 over the names and contents of `sources`, files or folders, less what is in `except`, and over `flags`.
/// Names are relative to `root`, so that they are the same on every machine.
pub(crate) fn hash(
    root: &Path,
    sources: &[PathBuf],
    except: &[PathBuf],
    flags: &str,
) -> Result<String> {
    let mut files = Vec::new();
    for source in sources {
        list(source, except, &mut files)?;
    }
    files.sort();
    files.dedup();
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        // With its length, so that no two lists of parts look alike.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(flags.as_bytes());
    for file in files {
        let name = relative(root, &file);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        add(name.as_bytes());
        add(&content);
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// SHA-256 of `text`.
pub(crate) fn sha256(text: &str) -> String {
    hexadecimal(&Sha256::digest(text))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path from `root`, with `/`; sources outside of it by their own name.
fn relative(root: &Path, file: &Path) -> String {
    let path = file.strip_prefix(root).unwrap_or(file);
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

fn list(path: &Path, except: &[PathBuf], into: &mut Vec<PathBuf>) -> Result<()> {
    if except.iter().any(|other| other == path) {
        return Ok(());
    }
    if !path.is_dir() {
        into.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        list(&entry?.path(), except, into)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_sha256_in_hexadecimal() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_source_counts_by_name_and_content_wherever_the_checkout_lies() {
        let root = std::env::temp_dir().join(format!("deft-source-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |checkout: &str, flags: &str| {
            let root = root.join(checkout);
            hash(&root, &[root.join("src")], &[root.join("src/aside")], flags).unwrap()
        };
        for checkout in ["a", "b"] {
            write(&format!("{checkout}/src/lib.rs"), "one");
            write(&format!("{checkout}/src/deep/x.rs"), "two");
        }
        let same = of("a", "f") == of("b", "f");
        let flags = of("a", "f") != of("a", "g");
        write("b/src/aside/y.rs", "three");
        let aside = of("a", "f") == of("b", "f");
        write("b/src/deep/x.rs", "twp");
        let content = of("a", "f") != of("b", "f");
        fs::remove_dir_all(&root).unwrap();
        assert!(same && flags && aside && content);
    }
}
