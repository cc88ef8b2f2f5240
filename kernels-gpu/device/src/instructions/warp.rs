//! Warps: lanes, shuffles and votes (PTX ISA, "shfl.sync", "vote.sync", "elect.sync").
//!
//! `mask` names the lanes that take part: each of them calls, with the same mask, at the same place. Only
//! [`sync_warp`] orders memory between lanes.

#[cfg(target_arch = "nvptx64")]
use super::intrinsics;
use super::shared::Shared;
use super::{bodies, thread};
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Lanes of a warp.
pub const LANES: u32 = 32;

/// The mask of a whole warp.
pub const FULL_MASK: u32 = u32::MAX;

/// No lane's source is clamped: the whole warp is one segment.
#[cfg(target_arch = "nvptx64")]
const WHOLE: u32 = LANES - 1;

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
    unsafe { warp_shuffle_idx(FULL_MASK, thread::thread_idx_x() / LANES, 0) }
}

/// Waits until all lanes of `mask` are here; what they wrote before is then visible to all of them.
///
/// # Safety
/// The lanes of `mask` call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn sync_warp(mask: u32) {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::warp_sync(mask) } }
        emulated { crate::emulator::warp::sync(mask) }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a shuffle takes from lane to lane, 32 bits an instruction.
pub trait Shuffled: sealed::Sealed + Copy {
    #[doc(hidden)]
    fn shuffled(self, shuffle: impl Fn(u32) -> u32) -> Self;
}

macro_rules! shuffled {
    ($([$($generic:ident)?] $type:ty, |$value:ident, $shuffle:ident| $result:expr;)+) => {$(
        impl$(<$generic>)? sealed::Sealed for $type {}

        impl$(<$generic>)? Shuffled for $type {
            #[inline(always)]
            fn shuffled(self, $shuffle: impl Fn(u32) -> u32) -> Self {
                let $value = self;
                $result
            }
        }
    )+};
}

shuffled! {
    [] u32, |value, shuffle| shuffle(value);
    [] f32, |value, shuffle| Self::from_bits(shuffle(value.to_bits()));
    [] u64, |value, shuffle| u64::from(shuffle((value >> 32) as u32)) << 32 | u64::from(shuffle(value as u32));
    [T] Shared<T>, |value, shuffle| Self::from_address(shuffle(value.address()));
}

/// The value of the lane whose index differs by `lane_mask` (bitwise exclusive or).
///
/// # Safety
/// The lanes of `mask` call it together, and read none but each other.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_xor<T: Shuffled>(mask: u32, value: T, lane_mask: u32) -> T {
    bodies! {
        // SAFETY: the caller's.
        ptx { value.shuffled(|word| unsafe { intrinsics::shuffle_xor(mask, word, lane_mask, WHOLE) }) }
        emulated {
            let site = core::panic::Location::caller();
            value.shuffled(|word| crate::emulator::warp::shuffle_xor(mask, word, lane_mask, site))
        }
    }
}

/// The value of lane `lane`.
///
/// # Safety
/// The lanes of `mask` call it together, and `lane` is one of them.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_idx<T: Shuffled>(mask: u32, value: T, lane: u32) -> T {
    bodies! {
        // SAFETY: the caller's.
        ptx { value.shuffled(|word| unsafe { intrinsics::shuffle_idx(mask, word, lane, WHOLE) }) }
        emulated {
            let site = core::panic::Location::caller();
            value.shuffled(|word| crate::emulator::warp::shuffle_idx(mask, word, lane, site))
        }
    }
}

/// Bit `l` says what lane `l` passed; 0 for those not in `mask`.
///
/// # Safety
/// The lanes of `mask` call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::vote_ballot(mask, predicate) } }
        emulated { crate::emulator::warp::ballot(mask, predicate) }
    }
}

macro_rules! votes {
    ($($(#[$doc:meta])* $name:ident, $suffix:literal, $emulated:ident;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The lanes of `mask` call it together.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(mask: u32, predicate: bool) -> bool {
            bodies! {
                // Not LLVM's intrinsic, which branches on the predicate itself: ptxas then issues the vote behind the
                // products that follow it, and `attend` takes up to 14 % longer at head dimension 64.
                ptx {
                    let result: u32;
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0;",
                            "vote.sync.", $suffix, ".pred p, p, {2}; selp.u32 {0}, 1, 0, p; }}"),
                            out(reg32) result, in(reg32) u32::from(predicate), in(reg32) mask,
                            options(nomem, nostack));
                    }
                    result != 0
                }
                emulated { crate::emulator::warp::$emulated(mask, predicate) }
            }
        }
    )+};
}

votes! {
    /// Whether any lane of `mask` passed true.
    warp_vote_any, "any", any;
    /// Whether all lanes of `mask` passed true.
    warp_vote_all, "all", all;
}

/// True in one lane of `mask`, always the same one; needs sm_90.
///
/// # Safety
/// The lanes of `mask` call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn elect_one(mask: u32) -> bool {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::elect(mask) }.is_this }
        emulated { crate::emulator::warp::elect_one(mask) }
    }
}
