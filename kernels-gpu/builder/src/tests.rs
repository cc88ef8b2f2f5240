//! What is current, and what differs.

use super::*;
use crate::manifest::tests::groups;

/// A crate in a folder of its own whose output is of its source.
fn built(name: &str) -> (PathBuf, PtxBuilder<'static>) {
    let folder = std::env::temp_dir().join(format!("deft-{name}-{}", std::process::id()));
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("Cargo.toml"), "[package]").unwrap();
    fs::write(folder.join("src/lib.rs"), "//! Kernels.").unwrap();
    let builder = PtxBuilder::new(&folder).arch(Arch::Sm90a);
    for (file, text) in made(&builder) {
        let path = folder.join("ptx").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (folder, builder)
}

fn made(builder: &PtxBuilder<'_>) -> BTreeMap<String, String> {
    let mut manifest = Manifest::default();
    let groups = groups("bar.sync 0;");
    let source = builder.source(Arch::Sm90a).unwrap();
    manifest.replace(Arch::Sm90a, "rustc 1", &source, &groups);
    BTreeMap::from([
        ("sm_90a/g.ptx".to_owned(), groups["g"].ptx.clone()),
        (manifest::MANIFEST.to_owned(), manifest.to_json()),
        (rust::RUST.to_owned(), rust::source(&manifest).unwrap()),
    ])
}

#[test]
fn output_is_current_until_a_source_or_the_output_changes() {
    let (folder, builder) = built("current");
    let mut answers = vec![builder.is_current().unwrap()];
    answers.push(builder.clone().arch(Arch::Sm80).is_current().unwrap());
    let mut with = |file: &str, text: &str| {
        let path = folder.join(file);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, text).unwrap();
        answers.push(builder.is_current().unwrap());
        fs::write(&path, before).unwrap();
    };
    with("src/lib.rs", "//! Others.");
    with("ptx/sm_90a/g.ptx", "other");
    with("ptx/kernels.rs", "");
    answers.push(builder.is_current().unwrap());
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(answers, [true, false, false, false, false, true]);
}

#[test]
fn what_differs_from_the_output_is_named() {
    let (folder, builder) = built("differs");
    let mut files = made(&builder);
    let same = builder.compare(&files).unwrap();
    let text = files.remove("sm_90a/g.ptx").unwrap();
    files.insert("sm_90a/h.ptx".to_owned(), text);
    files.insert(rust::RUST.to_owned(), "other".to_owned());
    let differences = builder.compare(&files).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(same.is_empty(), "{same:?}");
    assert_eq!(differences.len(), 3);
    for (difference, part) in differences.iter().zip([
        "kernels.rs differs from line 1",
        "h.ptx is missing",
        "g.ptx is left over",
    ]) {
        assert!(difference.contains(part), "{difference}");
    }
}
