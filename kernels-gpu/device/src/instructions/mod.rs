//! The instructions: every function has one signature and two bodies. Code above this module has no `cfg`.

mod element;
#[cfg(target_arch = "nvptx64")]
mod intrinsics;

pub mod async_copy;
pub mod atomic;
pub mod bulk;
pub mod global;
pub mod grid;
pub mod math;
pub mod matrix;
pub mod mbarrier;
pub mod register;
pub mod shared;
pub mod tensor;
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use element::{Bf16, Element, F16};

use crate::Arch;

/// What is compiled for. The host stands for Hopper, where it has to choose.
pub const ARCH: Arch = if cfg!(any(not(target_arch = "nvptx64"), target_feature = "sm_90a")) {
    Arch::Sm90a
} else {
    Arch::Sm80
};

/// Picks a function's body: the instruction on the device, the emulator elsewhere.
macro_rules! bodies {
    (ptx $ptx:block emulated $emulated:block) => {{
        #[cfg(target_arch = "nvptx64")]
        let result = $ptx;
        #[cfg(not(target_arch = "nvptx64"))]
        let result = $emulated;
        result
    }};
}
use bodies;
