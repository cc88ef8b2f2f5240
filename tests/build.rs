//! Collects the documentation's programs, so that a suite runs them on a GPU where there is one.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const PAGES: [(&str, &str); 3] = [
    ("readme", "../README.md"),
    ("using", "../docs/using.md"),
    ("prefixes", "../docs/prefixes.md"),
];

fn main() {
    let mut modules = String::new();
    let mut calls = String::new();
    for (page, path) in PAGES {
        println!("cargo::rerun-if-changed={path}");
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let programs = text.split("```rust\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
        for (index, (program, _)) in programs.enumerate() {
            let program = program
                .replace("Device::cpu()", "Device::best()")
                .replace("\nfn main()", "\npub(super) fn main()");
            let name = format!("{page}_{index}");
            writeln!(modules, "mod {name} {{\n{program}\n}}").unwrap();
            writeln!(calls, "(\"{name}\", || {name}::main().map_err(Into::into)),").unwrap();
        }
    }
    let out = Path::new(&env::var_os("OUT_DIR").expect("set by cargo")).join("documentation.rs");
    let list = format!("const PROGRAMS: &[(&str, Program)] = &[\n{calls}];\n");
    fs::write(out, modules + &list).expect("the output folder can be written");
}
