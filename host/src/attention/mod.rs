//! Running a plan: the backends and their reference.

mod backend;
mod check;
pub mod cpu;
pub mod reference;
mod rotary;

pub use backend::{Attend, AttentionParams, Backend, Counters, PagedTokens};
pub(crate) use check::check_length;
pub use check::{
    BackendError, check_append, check_attend, check_export, check_import, check_moves,
    check_params, check_plan, resolve,
};
pub use rotary::{RotaryTable, Rotation, check_append_rotated};
