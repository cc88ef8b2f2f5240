//! What can go wrong at the driver.

use crate::format::KvFormat;
use std::ffi::CStr;

use super::sys;

/// Why a CUDA call was refused or failed. Nothing was changed unless said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The machine has no NVIDIA driver, or the driver no device.
    #[error(
        "no CUDA device: {reason}; a visible GPU is needed, and an NVIDIA driver for CUDA {} or newer ({} for \
         compute capability 9.0)",
        version(sys::OLDEST_CUDA),
        version(sys::OLDEST_CUDA_FOR_HOPPER)
    )]
    NoDevice {
        /// What was tried, and what came of it.
        reason: String,
    },
    /// The driver is too old for the embedded kernels of this device.
    #[error("the NVIDIA driver serves CUDA {}; the kernels for {name} need {}", version(*.found), version(*.needed))]
    DriverTooOld {
        /// The device's name.
        name: String,
        /// The newest CUDA version the driver serves: 1000 x major + 10 x minor.
        found: i32,
        /// What it would have to serve.
        needed: i32,
    },
    /// There are fewer devices than asked for.
    #[error("no CUDA device {ordinal}: the driver has {count}")]
    NoSuchDevice {
        /// The device asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0")]
    TooOld {
        /// The device's name.
        name: String,
        /// Compute capability, major.
        major: i32,
        /// Compute capability, minor.
        minor: i32,
    },
    /// A driver call failed.
    #[error("{call} failed with {code} ({reason}){}", lost(*.code))]
    Driver {
        /// The driver call.
        call: &'static str,
        /// Its code (`CUresult`).
        code: i32,
        /// The code in words.
        reason: String,
    },
    /// A launch was refused.
    #[error("launch of {entry} with grid {grid:?}, {threads} threads and {shared_bytes} bytes of shared memory failed with {code} ({reason}){}", lost(*.code))]
    Launch {
        /// The kernel.
        entry: String,
        /// Blocks in x, y, z.
        grid: [u32; 3],
        /// Threads a block.
        threads: u32,
        /// Dynamic shared memory a block.
        shared_bytes: u32,
        /// The driver's code.
        code: i32,
        /// The code in words.
        reason: String,
    },
    /// Device memory is exhausted.
    #[error("{what} needs {bytes} bytes of device memory; {free} of {total} are free")]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free on the device.
        free: usize,
        /// The device's bytes.
        total: usize,
    },
    /// The driver's compiler refused a kernel.
    #[error("the driver could not compile {entry} from {image} ({code}, {reason}): {log}")]
    Jit {
        /// The kernel.
        entry: Box<str>,
        /// Where the PTX is from.
        image: Box<str>,
        /// The driver's code.
        code: i32,
        /// The code in words.
        reason: Box<str>,
        /// What the compiler said.
        log: Box<str>,
    },
    /// The PTX lacks a kernel.
    #[error("{image} has no entry {entry}; it has {known}")]
    NoSuchEntry {
        /// The kernel asked for.
        entry: String,
        /// Where the PTX is from.
        image: String,
        /// The entries that are there.
        known: String,
    },
    /// A kernel's parameters are not the ones this library passes.
    #[error(
        "{entry} in {image} takes parameters of {found:?} bytes; this library passes {passed:?}"
    )]
    Parameters {
        /// The kernel.
        entry: String,
        /// Where the PTX is from.
        image: String,
        /// Bytes of each parameter in the PTX.
        found: Vec<u32>,
        /// Bytes of each parameter passed.
        passed: Vec<u32>,
    },
    /// The PTX could not be read, or is not what it claims to be.
    #[error("{image}: {problem}")]
    Image {
        /// Where the PTX is from.
        image: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A slice is too short or too long.
    #[error("{argument} has {got} elements; expected {expected}")]
    Length {
        /// The argument.
        argument: &'static str,
        /// Elements given.
        got: usize,
        /// Elements wanted.
        expected: usize,
    },
    /// An argument is one that no kernel takes.
    #[error("{argument} is {value}; expected {expected}")]
    Argument {
        /// The argument.
        argument: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// A plan does not fit the device buffers that were set aside for it.
    #[error("the plan needs {needed} {what}; the device plan holds {capacity}")]
    PlanCapacity {
        /// Which part of the plan.
        what: &'static str,
        /// What the plan needs.
        needed: usize,
        /// What there is room for.
        capacity: usize,
    },
    /// A dimension of the cache is out of range, or there is no such layer.
    #[error(transparent)]
    Shape(#[from] crate::cache::ShapeError),
    /// There are no kernels for this element type.
    #[error("the CUDA kernels store bf16 and f16; {dtype} runs on the CPU")]
    DType {
        /// What was asked for.
        dtype: crate::cache::DType,
    },
    /// A device plan was reserved for another cache's shape: its partial results have other sizes.
    #[error("the device plan was reserved for {reserved}; the cache has {cache}")]
    PlanShape {
        /// What it was reserved for.
        reserved: String,
        /// What the cache has.
        cache: String,
    },
    /// The plan reads pages that the kernels cannot.
    #[error("the plan reads pages in {format}, for which there are no kernels; seal as native")]
    PlanFormat {
        /// Their format.
        format: KvFormat,
    },
    /// A copy failed while a plan was put on the device.
    #[error("the device plan holds parts of two plans, since a copy failed: update it")]
    PlanMixed,
    /// A plan was made for another head shape.
    #[error(
        "the plan has {got} query heads a KV head; the device plan was reserved for {expected}"
    )]
    GroupSize {
        /// The plan's.
        got: u32,
        /// The device plan's.
        expected: u32,
    },
    /// A work item is larger than the kernels' tile.
    #[error(
        "the plan has a work item of {got} rows (queries x query heads a KV head); the kernels take {max}: set `max_rows` of the plan's configuration"
    )]
    ItemRows {
        /// The largest item's.
        got: u32,
        /// Most allowed.
        max: u32,
    },
}

/// After one of these the context answers nothing else any more.
fn lost(code: i32) -> &'static str {
    match code {
        700 | 714..=719 | 721 => {
            "; a kernel faulted, and every later CUDA call of this process will fail"
        }
        _ => "",
    }
}

/// The driver's own name and text of a code.
pub(super) fn reason(code: i32) -> String {
    let text = |call: unsafe fn(i32, *mut *const std::ffi::c_char) -> i32| {
        let mut text = std::ptr::null();
        // SAFETY: the driver stores a pointer to a static string, or leaves the null.
        let answered = unsafe { call(code, &mut text) } == sys::SUCCESS && !text.is_null();
        if !answered {
            return None;
        }
        // SAFETY: not null, so it is the driver's NUL-terminated static string.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(words)) => format!("{name}: {words}"),
        (Some(name), None) => name,
        _ => "a code the driver does not name".into(),
    }
}

/// An error for any code but success.
pub(super) fn check(call: &'static str, code: i32) -> Result<(), CudaError> {
    if code == sys::SUCCESS {
        return Ok(());
    }
    Err(CudaError::Driver { call, code, reason: reason(code) })
}

/// Major and minor of a CUDA version as the driver counts it.
pub(super) fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_nobody_knows_keep_their_number() {
        let error = check("cuLaunchKernelEx", 912).unwrap_err();
        assert!(matches!(error, CudaError::Driver { code: 912, .. }));
        assert!(error.to_string().contains("912"), "{error}");
    }

    #[test]
    fn a_kernel_fault_says_that_the_context_is_lost() {
        let fault = check("cuStreamSynchronize", 700).unwrap_err().to_string();
        let refusal = check("cuStreamSynchronize", 1).unwrap_err().to_string();
        assert!(fault.contains("faulted"), "{fault}");
        assert!(!refusal.contains("faulted"), "{refusal}");
    }

    #[test]
    fn who_has_no_driver_is_told_which_one_is_needed() {
        let error = CudaError::NoDevice { reason: "libcuda.so.1 could not be opened".into() };
        assert_eq!(
            error.to_string(),
            "no CUDA device: libcuda.so.1 could not be opened; a visible GPU is needed, and an NVIDIA driver for \
             CUDA 12.0 or newer (12.3 for compute capability 9.0)"
        );
    }
}
