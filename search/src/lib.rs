//! `deft-search`: a language model searches a tree of continuations, and the tree is shown as it grows.
//!
//! ```text
//! args --> question (prompt, checker) --> method --[TreeSearch over a measured model]--> outcome --> report
//!      \-> model (GGUF, CPU or GPU)                      \--> events --> tree --[draw]--> terminal, or lines
//! ```

pub mod args;

#[cfg(feature = "run")]
mod draw;
#[cfg(feature = "run")]
mod measure;
#[cfg(feature = "run")]
mod method;
#[cfg(feature = "run")]
mod model;
#[cfg(feature = "run")]
mod question;
#[cfg(feature = "run")]
mod report;
#[cfg(feature = "run")]
mod run;
#[cfg(feature = "run")]
mod show;
#[cfg(feature = "run")]
mod tree;

#[cfg(feature = "run")]
pub use run::run;

#[cfg(all(test, feature = "run"))]
mod tests;
