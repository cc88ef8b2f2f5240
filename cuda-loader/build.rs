//! Writes the empty `libcuda.a` that satisfies `-lcuda`, and the list of names for `lib.rs`.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=symbols.txt");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let symbols = fs::read_to_string("symbols.txt").expect("symbols.txt is beside build.rs");
    let names: Vec<&str> =
        symbols.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();

    fs::write(out.join("trampolines.rs"), trampolines(&names)).expect("OUT_DIR is writable");
    fs::write(out.join("libcuda.a"), "!<arch>\n").expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search=native={}", out.display());
}

/// Rust source: `COUNT`, `NAMES`, and an assembly stub a name that jumps to `cuda_loader_enter` with
/// its index in `r11`, a register that no argument is passed in.
fn trampolines(names: &[&str]) -> String {
    let mut source = format!("const COUNT: usize = {};\n", names.len());
    source += "static NAMES: [&str; COUNT] = [\n";
    for name in names {
        source += &format!("    \"{name}\",\n");
    }
    source += "];\ncore::arch::global_asm!(\n";
    for (index, name) in names.iter().enumerate() {
        source += &format!(
            "    \".globl {name}\", \".type {name}, @function\", \"{name}:\", \
             \"mov r11d, {index}\", \"jmp {{enter}}\",\n"
        );
    }
    source += "    enter = sym enter,\n);\n";
    source
}
