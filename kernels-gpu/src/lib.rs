//! The device side of DeFT.
//!
//! Compiled for `nvptx64-nvidia-cuda` this crate is the kernels' PTX. Compiled for the host it is
//! an ordinary `no_std` dependency that holds what both sides share ([`abi`], [`layout`], [`random`],
//! [`rotary`], [`softmax`]); with the feature `emulate` the kernels themselves come too, on the emulator.
#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

#[cfg(target_arch = "nvptx64")]
device::dynamic_shared_memory!();

pub mod abi;
pub mod attention;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub mod cache;
pub mod directory;
#[cfg(target_arch = "nvptx64")]
pub mod flush;
pub mod layout;
pub mod model;
#[cfg(not(target_arch = "nvptx64"))]
pub mod ptx;
pub mod random;
pub mod rotary;
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub mod selftest;
pub mod softmax;

pub use device::Arch;
