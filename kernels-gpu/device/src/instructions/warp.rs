//! Warps: lanes, shuffles and votes (PTX ISA, "shfl.sync", "vote.sync", "elect.sync").
//!
//! All of them name the full warp. Only [`sync_warp`] orders memory between lanes.

use super::{bodies, thread};
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Lanes of a warp.
pub const LANES: u32 = 32;

/// Index of the thread within its warp.
#[inline(always)]
pub fn lane_id() -> u32 {
    thread::thread_idx_x() % LANES
}

/// Index of the warp within its block, known to the compiler to be the same in all lanes, so that
/// branches on it do not diverge.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_id() -> u32 {
    // SAFETY: the caller's.
    unsafe { shuffle_idx_u32(thread::thread_idx_x() / LANES, 0) }
}

/// Waits until all lanes are here; what they wrote before is then visible to all lanes.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn sync_warp() {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { asm!("bar.warp.sync 0xffffffff;", options(nostack)) } }
        emulated { crate::emulator::warp::sync() }
    }
}

/// The value of the lane whose index differs by `mask` (bitwise exclusive or).
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn shuffle_xor_u32(value: u32, mask: u32) -> u32 {
    bodies! {
        ptx {
            let result: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("shfl.sync.bfly.b32 {0}, {1}, {2}, 31, 0xffffffff;",
                    out(reg32) result, in(reg32) value, in(reg32) mask, options(nomem, nostack));
            }
            result
        }
        emulated { crate::emulator::warp::shuffle_xor(value, mask) }
    }
}

/// [`shuffle_xor_u32`] for `f32`.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub unsafe fn shuffle_xor_f32(value: f32, mask: u32) -> f32 {
    // SAFETY: the caller's.
    f32::from_bits(unsafe { shuffle_xor_u32(value.to_bits(), mask) })
}

/// The value of lane `lane`.
///
/// # Safety
/// All lanes of the warp call it together; `lane < 32`.
#[inline(always)]
#[track_caller]
pub unsafe fn shuffle_idx_u32(value: u32, lane: u32) -> u32 {
    bodies! {
        ptx {
            let result: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("shfl.sync.idx.b32 {0}, {1}, {2}, 31, 0xffffffff;",
                    out(reg32) result, in(reg32) value, in(reg32) lane, options(nomem, nostack));
            }
            result
        }
        emulated { crate::emulator::warp::shuffle_idx(value, lane) }
    }
}

/// [`shuffle_idx_u32`] for `f32`.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub unsafe fn shuffle_idx_f32(value: f32, lane: u32) -> f32 {
    // SAFETY: the caller's.
    f32::from_bits(unsafe { shuffle_idx_u32(value.to_bits(), lane) })
}

/// Bit `l` says what lane `l` passed.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn ballot(predicate: bool) -> u32 {
    bodies! {
        ptx {
            let result: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0;",
                    "vote.sync.ballot.b32 {0}, p, 0xffffffff; }}",
                    out(reg32) result, in(reg32) predicate as u32, options(nomem, nostack));
            }
            result
        }
        emulated { crate::emulator::warp::ballot(predicate) }
    }
}

/// Whether any lane passed true.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn any(predicate: bool) -> bool {
    // SAFETY: the caller's.
    unsafe { ballot(predicate) != 0 }
}

/// Whether all lanes passed true.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn all(predicate: bool) -> bool {
    // SAFETY: the caller's.
    unsafe { ballot(predicate) == u32::MAX }
}

/// True in one lane, always the same one; needs sm_90.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn elect_one() -> bool {
    bodies! {
        ptx {
            let result: u32;
            // SAFETY: the caller's.
            unsafe {
                asm!("{{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 {0}, 1, 0, p; }}",
                    out(reg32) result, options(nomem, nostack));
            }
            result != 0
        }
        emulated { crate::emulator::warp::elect_one() }
    }
}
