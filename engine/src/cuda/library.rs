//! Finding NVIDIA's libraries on the machine.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A library.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Environment variable that names its file, or the folder it is in.
    pub(super) variable: &'static str,
    /// Its file's name before the version.
    pub(super) file: &'static str,
    /// Major versions whose entry points are the ones used here, newest first.
    pub(super) versions: &'static [u32],
    /// The same of one that it needs and that lies beside it.
    pub(super) needs: Option<&'static str>,
}

impl Wanted {
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.versions.iter().map(|version| format!("{}.{version}", self.file))
    }
}

/// A library that was not found.
#[derive(Debug)]
pub(super) struct Missing {
    /// Where it was looked for.
    pub(super) looked: String,
    /// What the dynamic linker said of files that are there.
    pub(super) reasons: String,
}

impl Missing {
    /// What the linker said, in brackets.
    pub(super) fn because(reasons: &str) -> String {
        match reasons {
            "" => String::new(),
            _ => format!(" ({reasons})"),
        }
    }
}

/// Folders of the system that toolkits are installed to; `*` stands for any name.
const SYSTEM: [&str; 4] = [
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
    "/usr/lib/python3*/*-packages/nvidia/*/lib",
];

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    wanted: &'static Wanted,
    /// A file or folder that was named by the caller or the environment: then only there.
    named: Option<PathBuf>,
    /// Folders of toolkits and Python environments.
    folders: Vec<PathBuf>,
}

impl Lookup {
    /// `path` if it is given, else what `variable` says of the environment.
    pub(super) fn new(
        wanted: &'static Wanted,
        path: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let named = path.map(Path::to_owned);
        let named = named.or_else(|| variable(wanted.variable).map(PathBuf::from));
        let mut patterns = Vec::new();
        for toolkit in ["CUDA_HOME", "CUDA_PATH"] {
            patterns.extend(variable(toolkit).map(|path| PathBuf::from(path).join("lib64")));
        }
        for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            let Some(path) = variable(environment).map(PathBuf::from) else {
                continue;
            };
            patterns.push(path.join("lib/python3*/site-packages/nvidia/*/lib"));
            patterns.push(path.join("lib"));
        }
        patterns.extend(SYSTEM.map(PathBuf::from));
        Self { wanted, named, folders: patterns.iter().flat_map(|path| expand(path)).collect() }
    }

    /// Files to try, in order. A bare name is for the dynamic linker to find.
    fn candidates(&self) -> Vec<PathBuf> {
        let names: Vec<PathBuf> = self.wanted.names().map(PathBuf::from).collect();
        let within =
            |folder: &PathBuf| names.iter().map(|name| folder.join(name)).collect::<Vec<_>>();
        match &self.named {
            Some(folder) if folder.is_dir() => within(folder),
            Some(file) => vec![file.clone()],
            None => {
                let folders = self.folders.iter().flat_map(within);
                names.iter().cloned().chain(folders).collect()
            }
        }
    }

    /// Where that is, for an error.
    fn describe(&self) -> String {
        if let Some(path) = &self.named {
            return path.display().to_string();
        }
        let names: Vec<String> = self.wanted.names().collect();
        let folders = self.folders.iter().map(|path| path.display().to_string());
        let mut places = vec![format!("{} by name", names.join(", "))];
        places.extend(folders);
        places.join(", ")
    }

    /// Opens the first that there is.
    pub(super) fn open(&self) -> Result<(Library, PathBuf), Missing> {
        let mut reasons = Vec::new();
        for path in self.candidates() {
            match open(&path, self.wanted) {
                Ok(library) => return Ok((library, path)),
                Err(error) if path.components().count() == 1 || path.exists() => {
                    reasons.push(in_full(&error));
                }
                Err(_) => {}
            }
        }
        Err(Missing { looked: self.describe(), reasons: reasons.join("; ") })
    }
}

/// Opens the library at `path`, and before it the one beside it that it needs, if there is one.
fn open(path: &Path, wanted: &Wanted) -> Result<Library, libloading::Error> {
    // Without a run path in the library the linker would look for this one in its own folders alone.
    let beside = path.file_name().and_then(OsStr::to_str);
    let beside = beside.zip(wanted.needs).map(|(name, needs)| name.replace(wanted.file, needs));
    let beside = beside.map(|name| path.with_file_name(name));
    if let Some(beside) = beside.filter(|beside| beside != path && beside.exists()) {
        // SAFETY: loading NVIDIA's library runs only its own initialisers.
        let helper = unsafe { Library::open(Some(&beside), RTLD_NOW | RTLD_GLOBAL) }?;
        // It stays loaded as long as the program runs.
        std::mem::forget(helper);
    }
    // SAFETY: as above.
    unsafe { Library::open(Some(path), RTLD_NOW) }
}

/// An error with its causes: the dynamic linker's own words are among them.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

/// The paths that `pattern` stands for, a `*` in a name for anything; a pattern without one for itself.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut starred = false;
    for part in pattern.components() {
        let name = part.as_os_str();
        let Some((head, tail)) = name.to_str().and_then(|name| name.split_once('*')) else {
            found.iter_mut().for_each(|path| path.push(name));
            continue;
        };
        starred = true;
        let matching = |path: PathBuf| {
            let entries = path.read_dir().into_iter().flatten().flatten();
            let mut names: Vec<PathBuf> = entries
                .filter(|entry| {
                    let name = entry.file_name();
                    let name = name.to_string_lossy();
                    name.len() >= head.len() + tail.len()
                        && name.starts_with(head)
                        && name.ends_with(tail)
                })
                .map(|entry| entry.path())
                .collect();
            names.sort();
            names
        };
        found = found.into_iter().flat_map(matching).collect();
    }
    found.retain(|path| !starred || path.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::cublas::WANTED;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("deft-cublas-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_dynamic_linker_is_asked_first_then_the_toolkits_named_by_the_environment() {
        let lookup =
            Lookup::new(&WANTED, None, |name| (name == "CUDA_HOME").then(|| "/opt/cuda".into()));
        let candidates = lookup.candidates();
        let names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so.11"].map(PathBuf::from);
        assert_eq!(candidates[..3], names);
        assert_eq!(candidates[3..6], names.map(|name| Path::new("/opt/cuda/lib64").join(name)));
    }

    #[test]
    fn a_path_that_is_named_is_the_only_one_tried() {
        let of = |path: Option<&Path>| {
            Lookup::new(&WANTED, path, |name| {
                (name == WANTED.variable).then(|| "/there/libcublas.so.12".into())
            })
        };
        assert_eq!(of(None).candidates(), [PathBuf::from("/there/libcublas.so.12")]);
        let here = folder("named");
        let candidates = of(Some(&here)).candidates();
        assert_eq!(candidates.len(), WANTED.versions.len());
        assert_eq!(candidates[0], here.join("libcublas.so.13"));
        std::fs::remove_dir_all(here).unwrap();
    }

    #[test]
    fn python_environments_are_searched() {
        let environment = folder("venv");
        let lib = environment.join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        let root = environment.clone().into_os_string();
        let lookup =
            Lookup::new(&WANTED, None, |name| (name == "VIRTUAL_ENV").then(|| root.clone()));
        assert!(lookup.candidates().contains(&lib.join("libcublas.so.12")));
        std::fs::remove_dir_all(environment).unwrap();
    }

    #[test]
    fn a_file_that_is_no_library_says_why() {
        let here = folder("broken");
        let file = here.join("libcublas.so.12");
        std::fs::write(&file, "not a library").unwrap();
        let missing = Lookup::new(&WANTED, Some(&here), |_| None).open().unwrap_err();
        assert!(missing.reasons.contains(&*file.to_string_lossy()), "{missing:?}");
        std::fs::remove_dir_all(here).unwrap();
    }
}
