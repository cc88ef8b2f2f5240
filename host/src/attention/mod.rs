//! Running a plan: the backends.

mod backend;
mod check;
pub mod cpu;
mod rotary;

pub use backend::{Attend, AttentionParams, Backend, Counters, PagedTokens};
pub(crate) use check::check_length;
pub use check::{
    BackendError, check_append, check_attend, check_moves, check_paged, check_params, check_plan,
    resolve,
};
pub use rotary::{RotaryTable, Rotation, check_append_rotated};
