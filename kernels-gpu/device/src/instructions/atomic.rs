//! Atomics, acquire and release, and fences (PTX ISA, "Memory Consistency Model", "atom", "red",
//! "fence").

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Adds `value` to `*address` and returns what was there before; acquire and release, GPU scope.
///
/// # Safety
/// `address` is in global memory, valid and aligned.
#[inline(always)]
#[track_caller]
pub unsafe fn add_acq_rel_u32(address: *mut u32, value: u32) -> u32 {
    bodies! {
        ptx {
            let before: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("atom.add.acq_rel.gpu.global.u32 {0}, [{1}], {2};",
                    out(reg32) before, in(reg64) address, in(reg32) value, options(nostack));
            }
            before
        }
        emulated { crate::emulator::atomic::add_acq_rel(address, value) }
    }
}

/// Adds `value` to `*address`, releasing what this thread wrote (and what was made visible to it
/// before), GPU scope.
///
/// # Safety
/// `address` is in global memory, valid and aligned.
#[inline(always)]
#[track_caller]
pub unsafe fn reduce_add_release_u32(address: *mut u32, value: u32) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("red.add.release.gpu.global.u32 [{0}], {1};",
                    in(reg64) address, in(reg32) value, options(nostack))
            }
        }
        emulated { crate::emulator::atomic::add_release(address, value) }
    }
}

/// Loads `*address`, acquiring what its writer released, GPU scope.
///
/// # Safety
/// `address` is in global memory, valid and aligned.
#[inline(always)]
#[track_caller]
pub unsafe fn load_acquire_u32(address: *const u32) -> u32 {
    bodies! {
        ptx {
            let value: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("ld.acquire.gpu.global.u32 {0}, [{1}];",
                    out(reg32) value, in(reg64) address, options(nostack));
            }
            value
        }
        emulated { crate::emulator::atomic::load_acquire(address) }
    }
}

/// Stores `value`, releasing what this thread wrote (and what was made visible to it before), GPU
/// scope.
///
/// # Safety
/// `address` is in global memory, valid and aligned.
#[inline(always)]
#[track_caller]
pub unsafe fn store_release_u32(address: *mut u32, value: u32) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("st.release.gpu.global.u32 [{0}], {1};",
                    in(reg64) address, in(reg32) value, options(nostack))
            }
        }
        emulated { crate::emulator::atomic::store_release(address, value) }
    }
}

/// Makes this thread's writes to shared and global memory visible to the async proxy (bulk copies,
/// `wgmma`); needs sm_90. A barrier carries it to other threads.
#[inline(always)]
pub fn fence_proxy_async() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("fence.proxy.async;", options(nostack)) } }
        emulated { crate::emulator::proxy::fence_async() }
    }
}
