//! Runs GPU kernels written in Rust on the CPU, and checks what the hardware does not.
//!
//! [`Memory`] holds the buffers a kernel may access, [`Launch`] runs it. The other modules are what the
//! kernel crate's device module calls in the place of instructions; see the README beside this crate
//! for what they model.
//!
//! ```
//! use emulator::{Launch, Memory, global, thread};
//!
//! let mut memory = Memory::new();
//! let out = memory.unwritten::<u32>("out", 64);
//! Launch::new([2, 1, 1], 32)
//!     .run(&mut memory, || {
//!         let i = thread::block_index()[0] * 32 + thread::index();
//!         global::store(out.as_mut_ptr().wrapping_add(i as usize), i);
//!     })
//!     .unwrap();
//! assert!(memory.read(out).unwrap().into_iter().eq(0..64));
//! ```

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
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use launch::Launch;
pub use memory::{DevicePointer, Memory};
pub use report::{Cause, Report, Site};
pub use schedule::{ParseScheduleError, Schedule};
