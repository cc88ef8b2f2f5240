//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::SavedError;

/// A file beside the one that is wanted, until it is complete. Dropped before that it is removed.
pub(crate) struct Aside {
    path: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Aside {
    /// Creates the file beside `target`.
    pub(crate) fn create(target: &Path) -> Result<(Self, File), SavedError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(name);
        let file = File::create(&path).map_err(failed("create", &path))?;
        let target = target.to_owned();
        let kept = false;
        Ok((Self { path, target, kept }, file))
    }

    /// Brings the file to the disk and puts it in the place of the target.
    pub(crate) fn keep(mut self, file: &File) -> Result<(), SavedError> {
        file.sync_all().map_err(failed("write", &self.path))?;
        fs::rename(&self.path, &self.target).map_err(failed("replace", &self.target))?;
        self.kept = true;
        // So that the name, too, survives a crash; where a folder cannot be opened it may not.
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
            folder.sync_all().map_err(failed("write", &self.target))?;
        }
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: whoever dropped it has the error that matters.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(crate) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> SavedError + 'a {
    move |source| SavedError::File { action, path: path.to_owned(), source }
}
