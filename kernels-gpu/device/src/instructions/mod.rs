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

/// Declares a kernel's entry point: its symbol and parameters, and the function that is its body.
///
/// Pass pointers as parameters of their own: inside a by-value record they would cost generic loads.
///
/// ```text
/// kernel! { unsafe fn append_d128(keys: *const u32, count: u32) = append::<128>; }
/// ```
#[macro_export]
macro_rules! kernel {
    ($(unsafe fn $name:ident($($parameter:ident: $type:ty),* $(,)?) = $body:expr;)+) => {
        $(
            const _: () = {
                #[cfg(target_arch = "nvptx64")]
                #[unsafe(no_mangle)]
                unsafe extern "ptx-kernel" fn $name($($parameter: $type),*) {
                    // SAFETY: the caller's obligations are the body's.
                    unsafe { ($body)($($parameter),*) }
                }

                // On the host, checks that the parameters are the body's.
                #[cfg(not(target_arch = "nvptx64"))]
                #[allow(
                    dead_code,
                    clippy::too_many_arguments,
                    clippy::macro_metavars_in_unsafe
                )]
                unsafe fn $name($($parameter: $type),*) {
                    // SAFETY: the caller's obligations are the body's.
                    unsafe { ($body)($($parameter),*) }
                }
            };
        )+
    };
}
