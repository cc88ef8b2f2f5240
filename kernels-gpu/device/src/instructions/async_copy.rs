//! Asynchronous copies of 16 bytes a thread (PTX ISA, "cp.async"); sm_80.

use super::bodies;
use super::shared::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Starts copying 16 bytes from global to shared memory, past L1.
///
/// # Safety
/// Both addresses are valid and 16-byte aligned. Nobody touches the destination before this thread's
/// [`wait_group`], and other threads only after a barrier that follows it.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_16<T>(destination: Shared<T>, source: *const T) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.cg.shared.global [{0}], [{1}], 16;",
                    in(reg32) destination.address(), in(reg64) source, options(nostack))
            }
        }
        emulated { crate::emulator::async_copy::copy_16(destination.address(), source.cast()) }
    }
}

/// Closes the thread's present group of copies.
#[inline(always)]
#[track_caller]
pub fn commit_group() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("cp.async.commit_group;", options(nostack)) } }
        emulated { crate::emulator::async_copy::commit_group() }
    }
}

/// Waits until all but the `PENDING` latest of the thread's groups are complete.
#[inline(always)]
#[track_caller]
pub fn wait_group<const PENDING: u32>() {
    bodies! {
        // SAFETY: only waits.
        ptx { unsafe { asm!("cp.async.wait_group {n};", n = const PENDING, options(nostack)) } }
        emulated { crate::emulator::async_copy::wait_group(PENDING) }
    }
}
