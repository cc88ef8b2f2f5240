//! The CUDA driver's functions, found at run time.
//!
//! `cust` links against `libcuda`, so a program that uses it neither links on a machine without the
//! driver nor starts there. This crate stands in between. Its build script puts an empty `libcuda.a`
//! in the linker's path, and the crate defines the functions themselves: each is a stub that jumps to
//! the function of that name in `libcuda.so.1`, opened on the first call. The same program therefore
//! runs with a driver, and without one every call answers `CUDA_ERROR_NO_DEVICE`.
//!
//! ```text
//! cuMemAlloc_v2:  mov r11d, 217      enter:  target of function 217 known?  jump to it
//!                 jmp enter                  else save arguments, `find(217)`, restore, jump
//! ```
//!
//! Arguments stay where the caller put them (registers and stack), so a stub needs no knowledge of
//! signatures. It relies on the System V calling convention of x86-64.
//!
//! A crate that uses `cust` calls [`ensure_linked`] once, so that the linker keeps the stubs.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "the stubs for `cust` are for x86-64 Linux: build without the feature `cust` on other targets; the feature \
     `cuda` needs neither"
);

use std::arch::naked_asm;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

include!(concat!(env!("OUT_DIR"), "/trampolines.rs"));

/// `CUDA_ERROR_NO_DEVICE`, what every function answers where there is no driver.
pub const NO_DEVICE: i32 = 100;
/// `CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND`, what a function answers that the driver lacks.
pub const SYMBOL_NOT_FOUND: i32 = 302;

const SUCCESS: i32 = 0;
const DRIVER: &str = "libcuda.so.1";

/// Where each function is, null until its first call.
static TARGETS: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];

/// Keeps the stubs in the program.
pub fn ensure_linked() {
    // The linker takes this object file out of the archive whole, stubs included, once any symbol
    // of it is wanted.
    std::hint::black_box(&TARGETS);
}

/// True if the driver's library can be opened. Whether it finds a device, `cuInit` tells.
pub fn has_driver() -> bool {
    driver().is_some()
}

fn driver() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            // SAFETY: the driver's library may be loaded at any time; it is never unloaded, since
            // the static is never dropped.
            unsafe { Library::new(DRIVER) }.ok()
        })
        .as_ref()
}

/// Every stub jumps here with its index in `r11`.
#[unsafe(naked)]
unsafe extern "C" fn enter() {
    // Six integer arguments and the two float ones (`cuTexRefSetMipmapLevelClamp`) live in registers
    // that `find` may use. On entry rsp is 8 past a multiple of 16; 8 + 6 * 8 + 40 keeps it aligned.
    naked_asm!(
        "lea r10, [rip + {targets}]",
        "mov r10, [r10 + r11 * 8]",
        "test r10, r10",
        "jz 2f",
        "jmp r10",
        "2:",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 40",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "mov rdi, r11",
        "call {find}",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "add rsp, 40",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        targets = sym TARGETS,
        find = sym find,
    )
}

/// The function that stub `index` stands for, remembered in [`TARGETS`].
extern "C" fn find(index: usize) -> *mut c_void {
    let target = resolve(driver(), NAMES[index]);
    TARGETS[index].store(target, Ordering::Release);
    target
}

fn resolve(driver: Option<&Library>, name: &str) -> *mut c_void {
    let Some(driver) = driver else {
        return match name {
            "cuGetErrorName" => error_name as *mut c_void,
            "cuGetErrorString" => error_string as *mut c_void,
            _ => no_device as *mut c_void,
        };
    };
    // SAFETY: the address is only handed to callers that declared the driver's function `name`.
    match unsafe { driver.get::<*mut c_void>(name) } {
        Ok(symbol) => *symbol,
        Err(_) => symbol_not_found as *mut c_void,
    }
}

extern "C" fn no_device() -> i32 {
    NO_DEVICE
}

extern "C" fn symbol_not_found() -> i32 {
    SYMBOL_NOT_FOUND
}

/// `cuGetErrorName` without a driver: `cust` prints errors through these two.
unsafe extern "C" fn error_name(_error: i32, name: *mut *const c_char) -> i32 {
    const NAME: &CStr = c"CUDA_ERROR_NO_DEVICE";
    // SAFETY: as for the driver's function, `name` points to the caller's pointer.
    unsafe { name.write(NAME.as_ptr()) };
    SUCCESS
}

/// `cuGetErrorString` without a driver.
unsafe extern "C" fn error_string(_error: i32, text: *mut *const c_char) -> i32 {
    const TEXT: &CStr = c"no CUDA driver (libcuda.so.1) on this machine";
    // SAFETY: as for the driver's function, `text` points to the caller's pointer.
    unsafe { text.write(TEXT.as_ptr()) };
    SUCCESS
}
