//! `cargo xtask replay`: a recorded tree, step by step, through the library.
//!
//! ```text
//! args --[load]--> trace --[session: cache, plans, attention, check]--> report: table or JSON
//!                    \--[timeline]--[picture]--> SVG
//! ```
//!
//! Only the arguments are there without the feature `replay`: the program that the user starts builds
//! kernels and itself first, and this with the PTX just made.

mod args;
#[cfg(feature = "replay")]
mod attend;
#[cfg(feature = "replay")]
mod check;
#[cfg(feature = "replay")]
mod data;
#[cfg(feature = "replay")]
mod legend;
#[cfg(feature = "replay")]
mod load;
#[cfg(feature = "replay")]
mod picture;
#[cfg(feature = "replay")]
mod progress;
#[cfg(feature = "replay")]
mod report;
#[cfg(feature = "replay")]
mod run;
#[cfg(feature = "replay")]
mod session;
#[cfg(feature = "replay")]
mod timeline;
#[cfg(feature = "replay")]
mod trace;

pub(crate) use args::Args;
#[cfg(feature = "replay")]
pub(crate) use run::run;
