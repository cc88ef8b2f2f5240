//! Overlap of kernels that depend on one another (PTX ISA, "griddepcontrol"); sm_90. Before it nothing overlaps, and
//! these functions do nothing.

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Lets the next kernel's blocks start, if it was launched as dependent; what they may read is governed
/// by their [`wait_dependencies`] alone.
#[inline(always)]
pub fn launch_dependents() {
    bodies! {
        ptx {
            if super::ARCH.overlaps_grids() {
                // SAFETY: touches no memory.
                unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack)) }
            }
        }
        emulated {}
    }
}

/// Waits until the kernels this one depends on are complete and what they wrote is visible. Nothing
/// they write may be read before.
#[inline(always)]
pub fn wait_dependencies() {
    bodies! {
        ptx {
            if super::ARCH.overlaps_grids() {
                // SAFETY: only waits.
                unsafe { asm!("griddepcontrol.wait;", options(nostack)) }
            }
        }
        emulated { crate::emulator::thread::wait_dependencies() }
    }
}
