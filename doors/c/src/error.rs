//! What went wrong, as a number and a text.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What every function of the header returns.
pub type Status = i32;

pub(crate) const OK: Status = 0;
/// An argument is refused; nothing was changed.
pub(crate) const INVALID: Status = 1;
/// A bug of ours; the handle is to be freed.
pub(crate) const INTERNAL: Status = 2;

/// Why an argument was refused: which, its value and the limit.
#[derive(Clone, Debug)]
pub struct Error(pub String);

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// An [`Error`] of a formatted text.
macro_rules! refuse {
    ($($text:tt)*) => { Err($crate::error::Error(format!($($text)*))) };
}
pub(crate) use refuse;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a call, keeps the text of its error, and lets no panic through.
pub(crate) fn guard(call: impl FnOnce() -> Result<(), Error>) -> Status {
    let (status, text) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return OK,
        Ok(Err(Error(text))) => (INVALID, text),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            (INTERNAL, format!("a bug in deft: {}", text.unwrap_or("a panic")))
        }
    };
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    LAST.with_borrow_mut(|last| *last = text);
    status
}

/// The text of this thread's last error; valid until its next one.
#[unsafe(no_mangle)]
pub extern "C" fn deft_last_error() -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}

/// What a pointer of the caller's points to.
///
/// # Safety
/// It is null or valid for `'a`.
pub(crate) unsafe fn given<'a, T>(name: &str, pointer: *const T) -> Result<&'a T, Error> {
    // SAFETY: the caller's.
    unsafe { pointer.as_ref() }.ok_or_else(|| Error(format!("{name} is NULL")))
}

/// As [`given`], to be written.
///
/// # Safety
/// It is null, or valid for `'a` and nobody else's.
pub(crate) unsafe fn given_mut<'a, T>(name: &str, pointer: *mut T) -> Result<&'a mut T, Error> {
    // SAFETY: the caller's.
    unsafe { pointer.as_mut() }.ok_or_else(|| Error(format!("{name} is NULL")))
}

/// Frees a handle.
///
/// # Safety
/// It is null, or of a box and used no more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    guard(|| {
        if !handle.is_null() {
            // SAFETY: the caller's.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    });
}

/// `len` elements of the caller's; none where the pointer is null and `len` is 0.
///
/// # Safety
/// The pointer is null or valid for `len` elements for `'a`.
pub(crate) unsafe fn slice<'a, T>(
    name: &str,
    pointer: *const T,
    len: u64,
) -> Result<&'a [T], Error> {
    check_slice(name, pointer, len)?;
    match len {
        0 => Ok(&[]),
        // SAFETY: the caller's; length and alignment were checked.
        _ => Ok(unsafe { std::slice::from_raw_parts(pointer, len as usize) }),
    }
}

/// Whether `len` elements may be at `pointer`.
pub(crate) fn check_slice<T>(name: &str, pointer: *const T, len: u64) -> Result<(), Error> {
    let bytes = len.checked_mul(size_of::<T>() as u64);
    if len > 0 && pointer.is_null() {
        return refuse!("{name} is NULL; it must have {len} elements");
    }
    if bytes.is_none_or(|bytes| bytes > isize::MAX as u64) {
        return refuse!("{name} has {len} elements; they do not fit the address space");
    }
    if !pointer.is_aligned() {
        let (address, size) = (pointer.addr(), align_of::<T>());
        return refuse!("{name} is at {address:#x}; it must be a multiple of {size}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn a_panic_becomes_a_status_and_a_text() {
        assert_eq!(guard(|| panic!("it {}", "fell")), INTERNAL);
        // SAFETY: the text is this thread's, and nothing fails meanwhile.
        let text = unsafe { CStr::from_ptr(deft_last_error()) };
        assert_eq!(text.to_str(), Ok("a bug in deft: it fell"));
        assert_eq!(guard(|| refuse!("no")), INVALID);
        assert_eq!(guard(|| Ok(())), OK);
    }
}
