#![doc = include_str!("../README.md")]
//!
//! # Safety
//! Functions that touch memory or synchronise are `unsafe` with the PTX ISA's own conditions: addresses
//! are valid and aligned to the access, `.aligned` instructions are reached by all lanes of a warp
//! together, and asynchronous ones are waited for before their results are touched. The emulator
//! checks these; the hardware does not.
#![cfg_attr(any(target_arch = "nvptx64", not(feature = "emulate")), no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(asm_experimental_arch, stdarch_nvptx, link_llvm_intrinsics, abi_unadjusted)
)]
// LLVM's intrinsics are the compiler's own: each release is tried before kernels are built with it.
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

mod arch;
#[cfg(all(feature = "emulate", not(target_arch = "nvptx64")))]
pub mod emulator;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod instructions;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod ordering;

pub use arch::Arch;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub use instructions::*;

/// What a kernel's author needs: the modules of instructions, and the types that they take.
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub mod prelude {
    pub use crate::atomic::{Order, Scope};
    pub use crate::bulk::Bytes;
    pub use crate::mbarrier::Barrier;
    pub use crate::shared::{Shared, dynamic_shared_mem};
    pub use crate::warp::FULL_MASK;
    pub use crate::wgmma::{Accumulators, Descriptor, Operand};
    pub use crate::{Bf16, Element, F16};
    pub use crate::{
        async_copy, atomic, bulk, global, grid, math, matrix, mbarrier, register, tensor, thread,
        warp, wgmma,
    };
}
