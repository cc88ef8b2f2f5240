//! The C door: the functions of `include/deft.h`, and what the Python door shares with them.
//!
//! Handles are boxes; every argument is checked where the caller's memory becomes a slice. A panic of ours becomes
//! `DEFT_INTERNAL`, so none crosses the border.

mod cache;
mod device;
mod error;
mod plan;
mod tensor;

use std::ffi::{CStr, c_char};

pub use cache::*;
pub use device::Device;
pub use error::{Error, Status, deft_last_error};
pub use plan::*;
pub use tensor::{Tensor, dtype};

/// Raised when a function or a struct of the header changes.
#[unsafe(no_mangle)]
pub extern "C" fn deft_abi_version() -> u32 {
    2
}

/// The library's version.
#[unsafe(no_mangle)]
pub extern "C" fn deft_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    CStr::from_bytes_with_nul(VERSION.as_bytes()).expect("it ends with 0").as_ptr()
}
