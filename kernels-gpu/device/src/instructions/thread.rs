//! Where a thread is in the grid, and a block's barriers (PTX ISA, "Special Registers", "bar").

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use super::intrinsics;
#[cfg(target_arch = "nvptx64")]
use crate::Arch;
#[cfg(target_arch = "nvptx64")]
use core::arch::{asm, nvptx};

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident = $intrinsic:ident, $emulated:expr;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 {
            bodies! {
                ptx {
                    // SAFETY: reads a special register.
                    unsafe { nvptx::$intrinsic() as u32 }
                }
                emulated { $emulated }
            }
        }
    )+};
}

index! {
    /// Index of the thread within its block. Blocks are one-dimensional.
    thread_idx_x = _thread_idx_x, crate::emulator::thread::index();
    /// Threads of a block.
    block_dim_x = _block_dim_x, crate::emulator::thread::block_threads();
    /// Index of the block within the grid, in x.
    block_idx_x = _block_idx_x, crate::emulator::thread::block_index()[0];
    /// Index of the block within the grid, in y.
    block_idx_y = _block_idx_y, crate::emulator::thread::block_index()[1];
    /// Index of the block within the grid, in z.
    block_idx_z = _block_idx_z, crate::emulator::thread::block_index()[2];
    /// Blocks of the grid, in x.
    grid_dim_x = _grid_dim_x, crate::emulator::thread::grid_blocks()[0];
    /// Blocks of the grid, in y.
    grid_dim_y = _grid_dim_y, crate::emulator::thread::grid_blocks()[1];
    /// Blocks of the grid, in z.
    grid_dim_z = _grid_dim_z, crate::emulator::thread::grid_blocks()[2];
}

/// Index of the thread within the grid, both one-dimensional.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// Waits until all threads of the block are here; what they wrote before is then visible to all.
///
/// # Safety
/// Every thread of the block reaches this very call.
#[inline(always)]
#[track_caller]
pub unsafe fn sync_threads() {
    bodies! {
        ptx {
            // SAFETY: the caller's.
            unsafe {
                // For sm_80 LLVM unrolls loops around the intrinsic that it leaves alone around assembly: `attend` is
                // then 8 % longer.
                match super::ARCH {
                    Arch::Sm80 => asm!("bar.sync 0;", options(nostack)),
                    Arch::Sm90a => intrinsics::barrier_sync(0),
                }
            }
        }
        emulated { crate::emulator::barrier::sync_threads() }
    }
}

/// Arrives at barrier `ID` (1 to 15; 0 is [`sync_threads`]'s) and waits until `threads` have arrived.
///
/// # Safety
/// All lanes of a warp call it together; `threads` is a multiple of 32, the same for all participants.
#[inline(always)]
#[track_caller]
pub unsafe fn named_barrier_sync<const ID: u32>(threads: u32) {
    const { assert!(ID > 0 && ID < 16) }
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::barrier_sync_count(ID, threads) } }
        emulated { crate::emulator::barrier::named_sync(ID, threads) }
    }
}

/// Arrives at barrier `ID` (1 to 15) without waiting; `threads` counts those who wait as well.
///
/// # Safety
/// As [`named_barrier_sync`].
#[inline(always)]
#[track_caller]
pub unsafe fn named_barrier_arrive<const ID: u32>(threads: u32) {
    const { assert!(ID > 0 && ID < 16) }
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::barrier_arrive_count(ID, threads) } }
        emulated { crate::emulator::barrier::named_arrive(ID, threads) }
    }
}

macro_rules! fences {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal, $scope:ident;)+) => {$(
        $(#[$doc])*
        /// and of what follows it (`fence.acq_rel`). With relaxed atomics on both sides it releases and acquires as
        /// theirs would. It waits for nobody.
        #[inline(always)]
        #[track_caller]
        pub fn $name() {
            bodies! {
                // SAFETY: orders accesses.
                ptx { unsafe { asm!($instruction, options(nostack)) } }
                emulated { crate::emulator::atomic::fence(crate::ordering::Scope::$scope) }
            }
        }
    )+};
}

fences! {
    /// Orders, for the block's threads, this thread's accesses before the fence
    block_fence, "fence.acq_rel.cta;", Block;
    /// Orders, for the GPU's threads, this thread's accesses before the fence
    device_fence, "fence.acq_rel.gpu;", Device;
    /// Orders, for all GPUs' threads and the host's, this thread's accesses before the fence
    system_fence, "fence.acq_rel.sys;", System;
}

/// Suspends the thread for about `nanoseconds` (at most 1,000,000).
#[inline(always)]
#[track_caller]
pub fn nanosleep(nanoseconds: u32) {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("nanosleep.u32 {0};", in(reg32) nanoseconds, options(nomem, nostack)) } }
        emulated {
            let _ = nanoseconds;
            crate::emulator::thread::pause()
        }
    }
}
