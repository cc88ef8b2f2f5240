//! GPU instructions as functions, one module a family, and an emulator that runs kernels made of them on the CPU.
//!
//! Compiled for `nvptx64-nvidia-cuda` a function is its instruction; elsewhere, with the feature `emulate`, it is a
//! call into the [emulator]. So the source that ships is what tests run.
//!
//! Names are `cuda_std`'s where it has one (indices, synchronisation) and the PTX ISA's for the rest.
//!
//! Addresses in shared memory are `u32`s (PTX "shared" state space): a generic pointer would cost
//! generic loads. Addresses in global memory are pointers.
//!
//! # Safety
//! Functions that touch memory or synchronise are `unsafe` with the PTX ISA's own conditions: addresses
//! are valid and aligned to the access, `.aligned` instructions are reached by all lanes of a warp
//! together, and asynchronous ones are waited for before their results are touched. The emulator
//! checks these; the hardware does not.
#![cfg_attr(any(target_arch = "nvptx64", not(feature = "emulate")), no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(
        asm_experimental_arch,
        stdarch_nvptx,
        link_llvm_intrinsics,
        abi_unadjusted
    )
)]

mod arch;
#[cfg(all(feature = "emulate", not(target_arch = "nvptx64")))]
pub mod emulator;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod instructions;
mod ordering;

pub use arch::Arch;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub use instructions::*;
