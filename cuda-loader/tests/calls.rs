//! Calls through the stubs, with and without a driver.

use std::ffi::{CStr, c_char};
use std::ptr;

unsafe extern "C" {
    fn cuInit(flags: u32) -> i32;
    fn cuDriverGetVersion(version: *mut i32) -> i32;
    fn cuGetErrorString(error: i32, text: *mut *const c_char) -> i32;
}

#[test]
fn a_call_reaches_the_driver_or_answers_no_device() {
    cuda_loader::ensure_linked();
    let mut version = 0;
    // SAFETY: signatures and arguments are those of the CUDA driver API.
    let (init, again, answer) = unsafe { (cuInit(0), cuInit(0), cuDriverGetVersion(&mut version)) };
    assert_eq!(init, again, "the first call resolves, the second jumps");
    if cuda_loader::has_driver() {
        assert_eq!(answer, 0);
        assert!(version >= 11_040, "driver version {version}");
    } else {
        assert_eq!(init, cuda_loader::NO_DEVICE);
        assert_eq!(answer, cuda_loader::NO_DEVICE);
        assert_eq!(version, 0);
    }
}

#[test]
fn an_error_has_a_text_even_without_a_driver() {
    cuda_loader::ensure_linked();
    let mut text = ptr::null();
    // SAFETY: signature and arguments are those of the CUDA driver API, which answers with a
    // static string.
    let text = unsafe {
        assert_eq!(cuGetErrorString(cuda_loader::NO_DEVICE, &mut text), 0);
        CStr::from_ptr(text)
    };
    assert!(text.to_str().unwrap().contains("CUDA"), "{text:?}");
}
