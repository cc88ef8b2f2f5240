//! Licences, sources, doubled and unused dependencies, in every run: what `cargo deny` would say, for machines that
//! lack it. The list of licences is deny.toml's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// Crates that are there in more than one version, and why that cannot be helped.
const DOUBLED: [(&str, &str); 6] = [
    ("bitflags", "cust wants 1, all others 2"),
    ("cpufeatures", "sha2 0.10 wants 0.2, chacha20 0.3"),
    ("getrandom", "tokenizers wants 0.3, rand 0.10 wants 0.4"),
    ("rand", "tokenizers wants 0.9"),
    ("rand_core", "as rand"),
    ("syn", "each derive macro wants its own of 1, 2 and 3"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What cargo knows of the workspace with all features, for the platform that has them all.
fn metadata() -> Value {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = cargo.output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// Packages that are built.
fn packages(metadata: &Value) -> Vec<&Value> {
    let ids = |list: &Value, id: fn(&Value) -> &Value| -> BTreeSet<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|entry| id(entry).to_string()).collect()
    };
    let built = ids(&metadata["resolve"]["nodes"], |node| &node["id"]);
    let all = metadata["packages"].as_array().expect("packages").iter();
    all.filter(|package| built.contains(&package["id"].to_string())).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Whether the licence expression can be met with `allowed` licences. Parentheses are around alternatives only.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    let part = |part: &str| {
        let part = part.trim().trim_matches(['(', ')']);
        let mut choices = part.split(" OR ").map(str::trim);
        choices.any(|choice| allowed.contains(choice))
    };
    let whole = expression.contains('(') || !expression.contains(" AND ");
    if whole {
        return expression.split(" AND ").all(part);
    }
    let mut choices = expression.split(" OR ");
    choices.any(|choice| choice.split(" AND ").all(|one| allowed.contains(one.trim())))
}

/// The licences that deny.toml allows.
fn allowed() -> BTreeSet<String> {
    let deny = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let (_, list) = deny.split_once("allow = [").expect("a list of licences");
    let (list, _) = list.split_once(']').expect("the list's end");
    let names = list.split(',').map(|name| name.trim().trim_matches('"'));
    names.map(str::to_owned).collect()
}

#[test]
fn every_licence_is_allowed_and_every_source_is_the_registry() {
    let (metadata, allowed) = (metadata(), allowed());
    for package in packages(&metadata) {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        assert!(permits(licence, &allowed), "{name} has the licence {licence:?}");
        let source = text(package, "source");
        let known =
            source.is_empty() || source.starts_with("registry+https://github.com/rust-lang/");
        assert!(known, "{name} is from {source}");
    }
}

#[test]
fn an_expression_is_met_by_one_choice_and_all_that_it_demands() {
    let allowed = BTreeSet::from(["MIT", "Unicode-3.0"].map(str::to_owned));
    for (expression, met) in [
        ("MIT", true),
        ("Apache-2.0/MIT", true),
        ("Apache-2.0 OR GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND Unicode-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(permits(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn no_crate_is_there_twice_without_a_reason() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        let name = text(package, "name");
        versions.entry(name).or_default().insert(text(package, "version"));
    }
    let doubled: BTreeSet<&str> =
        versions.iter().filter(|(_, v)| v.len() > 1).map(|(name, _)| *name).collect();
    let reasons: BTreeSet<&str> = DOUBLED.iter().map(|(name, _)| *name).collect();
    let unexplained: Vec<_> =
        doubled.difference(&reasons).map(|name| (name, &versions[name])).collect();
    assert!(unexplained.is_empty(), "doubled, with no reason in DOUBLED: {unexplained:?}");
    let gone: Vec<_> = reasons.difference(&doubled).collect();
    assert!(gone.is_empty(), "no longer doubled, take it out of DOUBLED: {gone:?}");
}

#[test]
fn every_declared_dependency_is_used() {
    let metadata = metadata();
    for package in packages(&metadata) {
        if !package["source"].is_null() {
            continue;
        }
        let manifest = Path::new(text(package, "manifest_path"));
        let source = sources(manifest.parent().expect("a manifest is in a folder"));
        for dependency in package["dependencies"].as_array().expect("a list") {
            let name = dependency["rename"].as_str().unwrap_or(text(dependency, "name"));
            let library = match name {
                "deft-attention" => "deft".to_owned(),
                _ => name.replace('-', "_"),
            };
            let ways =
                [format!("{library}::"), format!("use {library};"), format!("use {library} as")];
            let used = ways.iter().any(|way| source.contains(way));
            assert!(used, "{} declares {name} and does not use it", text(package, "name"));
        }
    }
}

/// All Rust of a package; not that of packages within its folder.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir()
            && path.file_name() != Some("target".as_ref())
            && !path.join("Cargo.toml").exists()
        {
            all += &sources(&path);
        } else if path.extension() == Some("rs".as_ref()) {
            all += &fs::read_to_string(path).expect("a text");
        }
    }
    all
}
