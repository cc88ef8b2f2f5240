//! Modules of a crate import each other in one direction: no circle goes through files of different folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Top-level modules of a crate, each with those it imports by `crate::`, tests left out.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(folder: &Path, top: Option<&str>, imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let top = top.unwrap_or(name);
        if path.is_dir() {
            read(&path, Some(top), imports);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests" {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\nmod tests {").next().unwrap_or_default();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let code: String = code.collect();
            let of_file = imports.entry(top.to_owned()).or_default();
            of_file.extend(code.split("crate::").skip(1).flat_map(imported));
        }
    }
}

/// The modules that `a::b` or `{a::b, c}` begin with, at the begin of `rest`; names of other things with them.
fn imported(rest: &str) -> Vec<String> {
    let of_names = |letter: char| letter.is_alphanumeric() || letter == '_';
    let end = match rest.starts_with('{') {
        true => rest.find(';'),
        false => rest.find(|letter| !of_names(letter)),
    };
    let parts = rest[..end.unwrap_or(rest.len())].split(['{', ',', '}']);
    let names = parts.filter_map(|part| part.trim().split("::").next());
    names.map(str::to_owned).collect()
}

/// Everything that `from` reaches.
fn reached(imports: &Imports, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(module) = next.pop() {
        let all = imports.get(&module).into_iter().flatten();
        let new = all.filter(|&other| *other != module && imports.contains_key(other));
        next.extend(new.filter(|&other| found.insert(other.clone())).cloned());
    }
    found
}

#[test]
fn no_circle_of_imports_goes_through_files_of_different_folders() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut circles = Vec::new();
    for krate in [
        "bench",
        "cuda-loader",
        "docs/report",
        "doors/c",
        "doors/python",
        "engine",
        "host",
        "kernels-gpu",
        "kernels-gpu/builder",
        "kernels-gpu/device",
        "kernels-gpu/macros",
        "search",
        "tests",
        "workloads",
        "xtask",
    ] {
        let source = root.join(krate).join("src");
        let mut imports = Imports::new();
        read(&source, None, &mut imports);
        for root in ["lib", "main", "bin"] {
            imports.remove(root);
        }
        let is_folder = |module: &String| source.join(module).is_dir();
        for module in imports.keys() {
            let back = |other: &&String| reached(&imports, other).contains(module);
            let all = reached(&imports, module);
            let through: Vec<_> = all.iter().filter(back).collect();
            if through.iter().any(|&other| is_folder(other)) {
                circles.push(format!("{krate}: {module} with {through:?}"));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn imports_are_read_by_their_first_module() {
    assert_eq!(imported("plan::Plan;"), ["plan"]);
    let group = imported("{cache::{DType, PageId}, tree::TreeView};");
    assert!(["cache", "tree"].iter().all(|module| group.contains(&(*module).to_owned())));
    assert_eq!(imported("abi::PAGE_TOKENS as usize}, x"), ["abi"]);
}
