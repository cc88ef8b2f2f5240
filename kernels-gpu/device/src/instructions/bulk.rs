//! Bulk asynchronous copies, done by the async proxy (PTX ISA, "cp.async.bulk"); sm_90.

use core::ops::{Add, Mul};

use super::bodies;
use super::mbarrier::Barrier;
use super::shared::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A number of bytes, as copies and the barriers they report to count them.
///
/// ```compile_fail,E0308
/// # use deft_device::{bulk, mbarrier::Barrier, shared::Shared};
/// # unsafe fn copy(to: Shared<u32>, from: *const u32, barrier: Barrier) {
/// bulk::copy_global_to_shared(to, from, 128, barrier); // 128 of what?
/// # }
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u32);

impl Bytes {
    /// `count` bytes.
    #[inline(always)]
    pub const fn new(count: u32) -> Self {
        Self(count)
    }

    /// The size of `count` values.
    #[inline(always)]
    pub const fn of<T>(count: u32) -> Self {
        Self(count * size_of::<T>() as u32)
    }

    /// How many.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.0
    }
}

impl Add for Bytes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Mul<u32> for Bytes {
    type Output = Self;

    #[inline(always)]
    fn mul(self, times: u32) -> Self {
        Self(self.0 * times)
    }
}

/// How L2 treats the lines a copy touches (PTX ISA, "createpolicy").
#[derive(Clone, Copy, Debug)]
pub struct CachePolicy(#[cfg_attr(not(target_arch = "nvptx64"), expect(dead_code))] u64);

impl CachePolicy {
    /// Lines that will not be read again go first.
    #[inline(always)]
    pub fn evict_first() -> Self {
        bodies! {
            ptx {
                let policy: u64;
                // SAFETY: makes a constant.
                unsafe {
                    asm!("createpolicy.fractional.L2::evict_first.b64 {0}, 1.0;",
                        out(reg64) policy, options(pure, nomem, nostack));
                }
                Self(policy)
            }
            emulated { Self(0) }
        }
    }

    /// Lines that will be read again stay longest.
    #[inline(always)]
    pub fn evict_last() -> Self {
        bodies! {
            ptx {
                let policy: u64;
                // SAFETY: makes a constant.
                unsafe {
                    asm!("createpolicy.fractional.L2::evict_last.b64 {0}, 1.0;",
                        out(reg64) policy, options(pure, nomem, nostack));
                }
                Self(policy)
            }
            emulated { Self(1) }
        }
    }
}

/// Starts copying `bytes` from global memory at `source` to shared memory at `destination`; the barrier
/// at `mbarrier` is told when they have arrived (its `tx` count falls by `bytes`).
///
/// # Safety
/// Both ranges are valid, 16-byte aligned, and `bytes` is a multiple of 16; a barrier is at `mbarrier`,
/// whose initialisation the async proxy sees. Nobody touches the destination before the wait.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_global_to_shared<T>(
    destination: Shared<T>,
    source: *const T,
    bytes: Bytes,
    mbarrier: Barrier,
) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}], {2}, [{3}];",
                    in(reg32) destination.address(), in(reg64) source, in(reg32) bytes.0,
                    in(reg32) mbarrier.address(),
                    options(nostack))
            }
        }
        emulated { crate::emulator::bulk::global_to_shared(
                destination.address(), source.cast(), bytes.0, mbarrier.address(),
            ) }
    }
}

/// Starts bringing `bytes` at `source` to the L2 cache (PTX ISA, "cp.async.bulk.prefetch.L2").
///
/// # Safety
/// The range is valid, 16-byte aligned, and `bytes` is a multiple of 16.
#[inline(always)]
#[track_caller]
pub unsafe fn prefetch_l2<T>(source: *const T, bytes: Bytes) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.bulk.prefetch.L2.global [{0}], {1};",
                    in(reg64) source, in(reg32) bytes.0, options(nostack))
            }
        }
        emulated { crate::emulator::bulk::prefetch_l2(source.cast(), bytes.0) }
    }
}

/// [`copy_global_to_shared`] with an L2 policy.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_global_to_shared_hint<T>(
    destination: Shared<T>,
    source: *const T,
    bytes: Bytes,
    mbarrier: Barrier,
    policy: CachePolicy,
) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}], {2}, [{3}], {4};",
                    in(reg32) destination.address(), in(reg64) source, in(reg32) bytes.0,
                    in(reg32) mbarrier.address(),
                    in(reg64) policy.0, options(nostack))
            }
        }
        emulated {
            let _ = policy;
            crate::emulator::bulk::global_to_shared(
                destination.address(), source.cast(), bytes.0, mbarrier.address(),
            )
        }
    }
}

/// Starts copying `bytes` from shared memory at `source` to global memory at `destination`, as part of
/// the thread's present bulk group.
///
/// # Safety
/// Both ranges are valid, 16-byte aligned, and `bytes` is a multiple of 16. What threads stored in the
/// source has been made visible to the async proxy ([`super::atomic::fence_proxy_async`]).
#[inline(always)]
#[track_caller]
pub unsafe fn copy_shared_to_global<T>(destination: *mut T, source: Shared<T>, bytes: Bytes) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.bulk.global.shared::cta.bulk_group [{0}], [{1}], {2};",
                    in(reg64) destination, in(reg32) source.address(), in(reg32) bytes.0, options(nostack))
            }
        }
        emulated { crate::emulator::bulk::shared_to_global(destination.cast(), source.address(), bytes.0) }
    }
}

/// Closes the thread's present bulk group.
#[inline(always)]
#[track_caller]
pub fn commit_group() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("cp.async.bulk.commit_group;", options(nostack)) } }
        emulated { crate::emulator::bulk::commit_group() }
    }
}

/// Waits until all but the `PENDING` latest of the thread's bulk groups are complete.
#[inline(always)]
#[track_caller]
pub fn wait_group<const PENDING: u32>() {
    bodies! {
        // SAFETY: only waits.
        ptx { unsafe { asm!("cp.async.bulk.wait_group {n};", n = const PENDING, options(nostack)) } }
        emulated { crate::emulator::bulk::wait_group(PENDING) }
    }
}

/// Waits until all but the `PENDING` latest of the thread's bulk groups have read their sources.
#[inline(always)]
#[track_caller]
pub fn wait_group_read<const PENDING: u32>() {
    bodies! {
        // SAFETY: only waits.
        ptx {
            unsafe { asm!("cp.async.bulk.wait_group.read {n};", n = const PENDING, options(nostack)) }
        }
        emulated { crate::emulator::bulk::wait_group_read(PENDING) }
    }
}

/// Makes this thread's writes to shared memory visible to the async proxy.
#[inline(always)]
pub fn fence_proxy_async_shared() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) } }
        emulated { crate::emulator::proxy::fence_async() }
    }
}
