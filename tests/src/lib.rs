//! What the test suites share: random forests, inputs, answers in f64 and tolerances.

pub mod coded;
pub mod compacted;
pub mod coverage;
pub mod emulated;
pub mod foreign;
pub mod forests;
pub mod fuzz;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod inputs;
pub mod instructions;
pub mod oracle;
pub mod problem;
pub mod recorded;
pub mod reference;
pub mod scored;
pub mod shadow;
pub mod transfers;
pub mod views;
pub mod watchdog;
pub mod workloads;
pub mod world;

/// The number in an environment variable, `otherwise` where it is not set.
///
/// # Panics
/// If it is no number.
pub fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{name} is `{text}`: {error}")),
        Err(_) => otherwise,
    }
}
