//! Registers a warp may use (PTX ISA, "setmaxnreg"); sm_90a.

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use super::intrinsics;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Asks for `COUNT` registers a thread (24 to 256, a multiple of 8), waiting until others gave enough
/// back.
///
/// # Safety
/// All warps of the warpgroup call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn set_max_inc<const COUNT: u32>() {
    const { assert!(COUNT >= 24 && COUNT <= 256 && COUNT.is_multiple_of(8)) }
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::set_max_registers_inc(COUNT) } }
        emulated { crate::emulator::register::set_max_inc(COUNT) }
    }
}

/// Gives registers back, down to `COUNT` a thread (24 to 256, a multiple of 8).
///
/// # Safety
/// All warps of the warpgroup call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn set_max_dec<const COUNT: u32>() {
    const { assert!(COUNT >= 24 && COUNT <= 256 && COUNT.is_multiple_of(8)) }
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::set_max_registers_dec(COUNT) } }
        emulated { crate::emulator::register::set_max_dec(COUNT) }
    }
}

/// `value`, of which the compiler no longer knows that it could have been computed earlier: keeps what is used once
/// at the end of a loop's turn from occupying a register all through it.
#[inline(always)]
pub fn late(value: u32) -> u32 {
    bodies! {
        ptx {
            let mut value = value;
            // SAFETY: no instruction.
            unsafe { asm!("// {0}", inout(reg32) value, options(nomem, nostack)) };
            value
        }
        emulated { value }
    }
}
