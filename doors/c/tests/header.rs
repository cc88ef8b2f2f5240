//! The header says what the library has, and its example runs.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use deft_c::{Draft, Shape, Tables, Tensor};

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Functions with their numbers of parameters, of lines that begin with one of `marks`.
fn functions(text: &str, marks: &[&str]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let begins = text.match_indices("deft_").filter(|(at, _)| {
        let line = &text[text[..*at].rfind('\n').map_or(0, |end| end + 1)..*at];
        marks.iter().any(|mark| line.starts_with(mark))
    });
    for (at, _) in begins {
        let rest = &text[at..];
        let Some((name, rest)) = rest.split_once('(') else { continue };
        let Some((parameters, _)) = rest.split_once(')') else { continue };
        if name.chars().all(|letter| letter.is_alphanumeric() || letter == '_') {
            let parameters = parameters.trim().trim_end_matches(',');
            let none = parameters.is_empty() || parameters == "void";
            let count = if none { 0 } else { parameters.split(',').count() };
            found.insert(name.to_owned(), count);
        }
    }
    found
}

#[test]
fn the_header_declares_the_functions_that_the_library_exports() {
    let header = fs::read_to_string(folder().join("include/deft.h")).unwrap();
    let declared = functions(&header, &["int32_t", "uint32_t", "const char", "void"]);
    let mut exported = BTreeMap::new();
    for file in fs::read_dir(folder().join("src")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        let marks = ["pub extern \"C\" fn", "pub unsafe extern \"C\" fn"];
        exported.extend(functions(&source, &marks));
    }
    assert_eq!(declared, exported);
    assert!(declared.len() > 15, "{declared:?}");
}

fn cc() -> Option<PathBuf> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found = ["cc", "gcc", "clang"].into_iter().find(works).map(PathBuf::from);
    if found.is_none() {
        println!("skipped: there is no C compiler");
    }
    found
}

/// Where cargo puts the library, built for this test or not: beside it.
fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().expect("tests are in a folder").to_owned()
}

fn compile(cc: &Path, source: &Path, name: &str) -> PathBuf {
    let (program, library) = (library().join(name), library());
    let output = Command::new(cc)
        .args(["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .arg("-I")
        .arg(folder().join("include"))
        .arg("-L")
        .arg(&library)
        .args(["-ldeft_c", "-lm"])
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

#[test]
fn structs_of_the_header_lie_as_those_of_the_library() {
    let Some(cc) = cc() else { return };
    let mut source = "#include <stddef.h>\n#include \"deft.h\"\n".to_owned();
    macro_rules! same {
        ($c:literal, $rust:ty: $($field:ident)*) => {
            let size = size_of::<$rust>();
            source += &format!("_Static_assert(sizeof({}) == {size}, \"size\");\n", $c);
            $(source += &format!("_Static_assert(offsetof({}, {}) == {}, \"place\");\n", $c,
                stringify!($field), offset_of!($rust, $field));)*
        };
    }
    same!("deft_tensor", Tensor: data device device_id dtype ndim shape strides);
    same!("deft_block_tables", Tables: ids lens queries masks sequences stride mask_words page_size reserved);
    same!("deft_cache_shape", Shape: capacity_bytes layers q_heads kv_heads head_dim dtype gpu scale soft_cap);
    same!("deft_draft_node", Draft: parent tokens);
    source += "int main(void) { return deft_abi_version() != DEFT_ABI_VERSION; }\n";
    let file = library().join("deft_structs.c");
    fs::write(&file, source).unwrap();
    said(&mut Command::new(compile(&cc, &file, "deft_structs")));
}

#[test]
fn the_example_runs_and_leaks_nothing() {
    let Some(cc) = cc() else { return };
    let program = compile(&cc, &folder().join("examples/branches.c"), "deft_branches");
    let text = said(&mut Command::new(&program));
    assert!(text.starts_with("130 tokens, 66 of them different\n"), "{text}");
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("not under valgrind: there is none");
        return;
    }
    let checks =
        ["-q", "--error-exitcode=3", "--leak-check=full", "--errors-for-leak-kinds=definite"];
    said(Command::new("valgrind").args(checks).arg(&program));
}
