//! Runs GPU kernels written in Rust on the CPU, and checks what the hardware does not.
//!
//! [`Memory`] holds the buffers a kernel may access, [`Launch`] runs it. The other modules are what this crate's
//! instructions call in the place of hardware; the crate's documentation says what they model.

mod block;
mod clock;
mod grid;
mod launch;
mod memory;
mod random;
mod report;
mod schedule;
mod scheduler;
mod shadow;
mod span;

pub mod async_copy;
pub mod atomic;
pub mod barrier;
pub mod bulk;
pub mod global;
pub mod math;
pub mod matrix;
pub mod mbarrier;
pub mod proxy;
pub mod register;
pub mod shared;
pub mod tensor;
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use launch::Launch;
pub use memory::{DevicePointer, Memory};
pub use report::{Cause, Report, Site};
pub use schedule::{ParseScheduleError, Schedule};
