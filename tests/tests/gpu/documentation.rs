//! The programs of README, `docs/using.md` and `docs/prefixes.md` on the device that `Device::best` finds, those that
//! are written for the CPU too. On the CPU they are doctests of `host`.

#![allow(clippy::useless_conversion, reason = "programs end in errors of several types")]

use std::error::Error;

type Program = fn() -> Result<(), Box<dyn Error>>;

include!(concat!(env!("OUT_DIR"), "/documentation.rs"));

#[test]
fn programs_of_the_documentation_run_on_this_machines_device() {
    println!("{:?}", deft::Device::best());
    assert!(PROGRAMS.len() >= 8, "{}", PROGRAMS.len());
    for (name, program) in PROGRAMS {
        program().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
