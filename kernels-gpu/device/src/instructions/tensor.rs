//! Copies of boxes of a tensor by the async proxy (PTX ISA, "Tensors" and "cp.async.bulk.tensor"); sm_90.
//!
//! A [`TensorMap`] says where a tensor lies, and which box of it a copy brings; a copy names the box's first element.

use super::bodies;
use super::mbarrier::Barrier;
use super::shared::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A tensor map, which only the driver knows how to read (CUDA Driver API, "Tensor Map Object Management").
///
/// A kernel takes it as `*const TensorMap`: the map is among the launch's parameters, and the pointer is to it there.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap(pub [u64; 16]);

/// Brings the map to where copies read it, before the first of them does.
///
/// # Safety
/// There is a map.
#[inline(always)]
pub unsafe fn prefetch(map: *const TensorMap) {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { asm!("prefetch.tensormap [{0}];", in(reg64) map, options(nostack)) } }
        emulated { let _ = map; }
    }
}

/// Starts copying the box whose first element is `at`, innermost dimension first, to shared memory at `destination`; the
/// barrier at `mbarrier` is told when it has arrived (its `tx` count falls by the box's bytes). What lies outside of the
/// tensor arrives as zeros.
///
/// # Safety
/// The map is of five dimensions, and its tensor valid. The box's bytes at the destination are valid, and aligned to what
/// the map's swizzle repeats after, 1024 bytes for 128; a barrier is at `mbarrier`, whose initialisation the async proxy
/// sees. Nobody touches the destination before the wait.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_box_to_shared<T>(
    destination: Shared<T>,
    map: *const TensorMap,
    at: [u32; 5],
    mbarrier: Barrier,
) {
    bodies! {
        // SAFETY: the caller's.
        ptx {
            unsafe {
                asm!("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}, {4}, {5}, {6}}}], [{7}];",
                    in(reg32) destination.address(), in(reg64) map,
                    in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3], in(reg32) at[4],
                    in(reg32) mbarrier.address(),
                    options(nostack))
            }
        }
        emulated { crate::emulator::tensor::box_to_shared(destination.address(), map.cast(), at, mbarrier.address()) }
    }
}
