//! The program's command line: what it teaches, and what it refuses.

use std::process::{Command, Output};

fn deft_search(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deft-search")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_names_every_option_with_an_example() {
    let output = deft_search(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in
        ["Examples:", "--prompt", "--search", "--width", "--depth", "--json", "tree of thoughts"]
    {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_model_that_is_not_there_is_refused_with_how_to_get_one() {
    let output = deft_search(&["--model", "no/such.gguf"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cargo xtask model"), "{}", stderr(&output));
}

#[test]
fn a_file_that_is_no_model_is_refused_by_name() {
    let path = std::env::temp_dir().join(format!("deft-search-{}.gguf", std::process::id()));
    std::fs::write(&path, "no model").unwrap();
    let output = deft_search(&["--model", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(path.to_str().unwrap()), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn json_is_one_object_even_where_nothing_could_be_run() {
    let path = std::env::temp_dir().join(format!("deft-search-json-{}.gguf", std::process::id()));
    std::fs::write(&path, "no model").unwrap();
    let output = deft_search(&["--json", "--model", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = object["error"].as_str().unwrap();
    assert!(error.contains("it starts with"), "{error}");
    assert!(stderr(&output).contains(error));
}

#[test]
fn a_depth_where_there_are_no_levels_is_refused() {
    let output =
        deft_search(&["--model", env!("CARGO_MANIFEST_PATH"), "--search", "beam", "--depth", "3"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--search tot"), "{}", stderr(&output));
}
