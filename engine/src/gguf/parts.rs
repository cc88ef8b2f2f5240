//! Models in several files: `NAME-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::{GgufError, Header, Metadata};

/// Most files of a model.
const MAX_PARTS: u32 = 1024;

/// The files of a model of which `path` is one, in order; none if it is all of it.
pub(super) fn paths(path: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>, GgufError> {
    let count = metadata.u32("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(Vec::new());
    }
    let number = metadata.u32("split.no")?.unwrap_or(0).saturating_add(1);
    let fail = |problem: String| GgufError::Part { number, count, problem };
    if count > MAX_PARTS {
        return Err(fail(format!("the limit is {MAX_PARTS}")));
    }
    let end = |number: u32| format!("-{number:05}-of-{count:05}.gguf");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(&end(number)) else {
        return Err(fail(format!(
            "its name has to end in {:?} for the others to be found",
            end(number)
        )));
    };
    let paths = (1..=count).map(|number| path.with_file_name(format!("{stem}{}", end(number))));
    let paths: Vec<PathBuf> = paths.collect();
    match paths.iter().find(|path| !path.is_file()) {
        Some(missing) => Err(fail(format!("{} is missing", missing.display()))),
        None => Ok(paths),
    }
}

/// All parts as one.
pub(super) fn join(parts: Vec<Header>) -> Result<Header, GgufError> {
    let mut parts = parts.into_iter().enumerate();
    let (_, mut all) = parts.next().expect("a model has a part");
    for (file, part) in parts {
        for (name, mut tensor) in part.tensors {
            tensor.file = file;
            if all.tensors.insert(name.clone(), tensor).is_some() {
                let what = "tensor";
                return Err(GgufError::Duplicate { what, name });
            }
        }
        all.file_bytes.extend(part.file_bytes);
    }
    Ok(all)
}
