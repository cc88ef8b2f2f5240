//! `cargo xtask`: builds, tests and runs everything.
fn main() {}
