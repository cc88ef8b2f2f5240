//! The library's public items are those that `docs/api/deft.txt` lists: what is added or goes is seen in review.

use std::fs;
use std::path::Path;

/// `file: first line` of every public item below `folder`. Items that nothing outside can name are not `pub`: the lint
/// `unreachable_pub` sees to that.
fn items(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            items(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(root).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let public = text.lines().map(str::trim).filter(|line| is_item(line));
            found.extend(public.map(|line| {
                let end = line.trim_end_matches(['{', ';', '(', ' ']);
                format!("{}: {end}", file.replace('\\', "/"))
            }));
        }
    }
}

fn is_item(line: &str) -> bool {
    let words = ["fn", "struct", "enum", "trait", "type", "const", "unsafe", "mod"];
    line.strip_prefix("pub ")
        .and_then(|rest| rest.split(' ').next())
        .is_some_and(|word| words.contains(&word))
}

#[test]
fn public_items_are_those_of_the_committed_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, list) = (root.join("src"), root.join("../docs/api/deft.txt"));
    let mut found = Vec::new();
    items(&sources, &sources, &mut found);
    found.sort();
    let found = found.join("\n") + "\n";
    if std::env::var_os("UPDATE_API").is_some() {
        fs::write(&list, &found).unwrap();
    }
    let listed = fs::read_to_string(&list).unwrap();
    assert_eq!(listed, found, "run with UPDATE_API=1 to rewrite docs/api/deft.txt");
}
