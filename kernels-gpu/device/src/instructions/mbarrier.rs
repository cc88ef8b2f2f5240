//! Memory barriers in shared memory, which count arrivals and bytes (PTX ISA, "mbarrier"); sm_90.
//!
//! A barrier's phases are numbered from 0; a phase completes when its arrivals and its expected bytes
//! have all come. [`wait_parity`] waits for the completion of the phase of that parity: the first wait
//! of a consumer passes 0. Waiting with parity 1 on a fresh barrier returns at once, which is how a
//! producer starts on an empty ring.

use super::bodies;
use super::bulk::Bytes;
use super::shared::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A barrier, by its address: 8 bytes of shared memory on a multiple of 8.
///
/// ```compile_fail,E0308
/// # use deft_device::{mbarrier, shared::Shared};
/// # unsafe fn arrive(data: Shared<u64>) {
/// mbarrier::arrive(data); // data, not a barrier
/// # }
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Barrier(Shared<u64>);

impl Barrier {
    /// The barrier at `place`, which is there once [`init`] has made it.
    #[inline(always)]
    pub const fn at(place: Shared<u64>) -> Self {
        Self(place)
    }

    /// Byte address in shared memory.
    #[inline(always)]
    pub const fn address(self) -> u32 {
        self.0.address()
    }
}

/// Makes a `barrier` that expects `count` arrivals a phase.
///
/// # Safety
/// Its place is in shared memory, 8-byte aligned, and no barrier is there. Others use it only after a
/// block barrier; bulk copies after [`fence_init`] as well.
#[inline(always)]
#[track_caller]
pub unsafe fn init(barrier: Barrier, count: u32) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("mbarrier.init.shared.b64 [{0}], {1};",
                    in(reg32) barrier.address(), in(reg32) count, options(nostack))
            }
        }
        emulated { crate::emulator::mbarrier::init(barrier.address(), count) }
    }
}

/// Makes this thread's [`init`]s visible to the async proxy and the cluster.
#[inline(always)]
pub fn fence_init() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) } }
        emulated { crate::emulator::mbarrier::fence_init() }
    }
}

/// Ends the `barrier`, so that its memory can be used otherwise.
///
/// # Safety
/// It was made, and nobody uses it any more.
#[inline(always)]
#[track_caller]
pub unsafe fn invalidate(barrier: Barrier) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("mbarrier.inval.shared.b64 [{0}];", in(reg32) barrier.address(), options(nostack))
            }
        }
        emulated { crate::emulator::mbarrier::invalidate(barrier.address()) }
    }
}

/// Arrives once, releasing what this thread did before.
///
/// # Safety
/// The barrier was made.
#[inline(always)]
#[track_caller]
pub unsafe fn arrive(barrier: Barrier) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("mbarrier.arrive.shared.b64 _, [{0}];", in(reg32) barrier.address(), options(nostack))
            }
        }
        emulated { crate::emulator::mbarrier::arrive(barrier.address()) }
    }
}

/// Arrives once and adds `bytes` to what the present phase waits for.
///
/// # Safety
/// The barrier was made; at most 2^20 - 1 bytes are outstanding.
#[inline(always)]
#[track_caller]
pub unsafe fn arrive_expect_tx(barrier: Barrier, bytes: Bytes) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("mbarrier.arrive.expect_tx.shared.b64 _, [{0}], {1};",
                    in(reg32) barrier.address(), in(reg32) bytes.count(), options(nostack))
            }
        }
        emulated { crate::emulator::mbarrier::arrive_expect_tx(barrier.address(), bytes.count()) }
    }
}

/// Whether the phase of this parity has completed; may wait a while before it says no.
///
/// # Safety
/// The barrier was made.
#[inline(always)]
#[track_caller]
pub unsafe fn try_wait_parity(barrier: Barrier, parity: u32) -> bool {
    bodies! {
        ptx {
            let done: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("{{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [{1}], {2};",
                    "selp.u32 {0}, 1, 0, p; }}",
                    out(reg32) done, in(reg32) barrier.address(), in(reg32) parity, options(nostack));
            }
            done != 0
        }
        emulated { crate::emulator::mbarrier::try_wait(barrier.address(), parity) }
    }
}

/// Waits until the phase of this parity has completed, acquiring what those who arrived did.
///
/// # Safety
/// The barrier was made.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_parity(barrier: Barrier, parity: u32) {
    bodies! {
        // A Rust loop: a label inside the assembly would be duplicated by inlining.
        // SAFETY: the caller's.
        ptx { while unsafe { !try_wait_parity(barrier, parity) } {} }
        emulated { crate::emulator::mbarrier::wait(barrier.address(), parity) }
    }
}
