//! Atomics on global memory and fences (PTX ISA, "Memory Consistency Model", "atom", "ld", "st", "fence").
//!
//! Pass `order` and `scope` as constants: then each call is one instruction.

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

pub use crate::ordering::{Order, Scope};

/// The instruction that `$order` and `$scope` name.
#[cfg(target_arch = "nvptx64")]
macro_rules! ordered {
    ($order:ident, $scope:ident, $instruction:ident) => {
        match ($order, $scope) {
            (Order::Relaxed, Scope::Block) => $instruction!("relaxed.cta"),
            (Order::Relaxed, Scope::Device) => $instruction!("relaxed.gpu"),
            (Order::Relaxed, Scope::System) => $instruction!("relaxed.sys"),
            (Order::Acquire, Scope::Block) => $instruction!("acquire.cta"),
            (Order::Acquire, Scope::Device) => $instruction!("acquire.gpu"),
            (Order::Acquire, Scope::System) => $instruction!("acquire.sys"),
            (Order::Release, Scope::Block) => $instruction!("release.cta"),
            (Order::Release, Scope::Device) => $instruction!("release.gpu"),
            (Order::Release, Scope::System) => $instruction!("release.sys"),
            (Order::AcqRel, Scope::Block) => $instruction!("acq_rel.cta"),
            (Order::AcqRel, Scope::Device) => $instruction!("acq_rel.gpu"),
            (Order::AcqRel, Scope::System) => $instruction!("acq_rel.sys"),
        }
    };
}

macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident, $type:ty, $class:ident, $suffix:literal, |$before:ident, $value:ident| $new:expr;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(address: *mut $type, $value: $type, order: Order, scope: Scope) -> $type {
            bodies! {
                ptx {
                    let before: $type;
                    macro_rules! update {
                        ($ordering:literal) => {
                            // SAFETY: the caller's.
                            unsafe {
                                asm!(concat!("atom.", $ordering, ".global.", $suffix, " {0}, [{1}], {2};"),
                                    out($class) before, in(reg64) address, in($class) $value, options(nostack))
                            }
                        };
                    }
                    ordered!(order, scope, update);
                    before
                }
                emulated {
                    crate::emulator::atomic::update(stringify!($name), address, order, scope, |$before| Some($new))
                }
            }
        }
    )+};
}

updates! {
    /// Adds `value` to `*address`, wrapping; what was there before.
    fetch_add_u32, u32, reg32, "add.u32", |before, value| before.wrapping_add(value);
    /// Adds `value` to `*address`, wrapping; what was there before.
    fetch_add_u64, u64, reg64, "add.u64", |before, value| before.wrapping_add(value);
    /// Adds `value` to `*address`, subnormal numbers being 0; what was there before. The order of several additions
    /// is left to chance, and so are the sum's last bits.
    fetch_add_f32, f32, reg32, "add.f32", |before, value| crate::emulator::math::add_flushed(before, value);
    /// The smaller of the two; what was there before.
    fetch_min_u32, u32, reg32, "min.u32", |before, value| before.min(value);
    /// The larger of the two; what was there before.
    fetch_max_u32, u32, reg32, "max.u32", |before, value| before.max(value);
    /// Bits that both have; what was there before.
    fetch_and_u32, u32, reg32, "and.b32", |before, value| before & value;
    /// Bits that either has; what was there before.
    fetch_or_u32, u32, reg32, "or.b32", |before, value| before | value;
    /// Bits that one of the two has; what was there before.
    fetch_xor_u32, u32, reg32, "xor.b32", |before, value| before ^ value;
    /// Replaces `*address` by `value`; what was there before.
    exchange_u32, u32, reg32, "exch.b32", |_before, value| value;
}

/// Replaces `*address` by `new` if it is `expected`; what was there before.
///
/// # Safety
/// `address` is in global memory, valid and aligned.
#[inline(always)]
#[track_caller]
pub unsafe fn compare_exchange_u32(
    address: *mut u32,
    expected: u32,
    new: u32,
    order: Order,
    scope: Scope,
) -> u32 {
    bodies! {
        ptx {
            let before: u32;
            macro_rules! update {
                ($ordering:literal) => {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("atom.", $ordering, ".global.cas.b32 {0}, [{1}], {2}, {3};"),
                            out(reg32) before, in(reg64) address, in(reg32) expected, in(reg32) new,
                            options(nostack))
                    }
                };
            }
            ordered!(order, scope, update);
            before
        }
        emulated {
            let replace = |before| (before == expected).then_some(new);
            crate::emulator::atomic::update("compare_exchange_u32", address, order, scope, replace)
        }
    }
}

macro_rules! loads {
    ($($(#[$doc:meta])* $name:ident, $ordering:literal, $order:ident;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(address: *const u32, scope: Scope) -> u32 {
            bodies! {
                ptx {
                    let value: u32;
                    macro_rules! load {
                        ($scope:literal) => {
                            // SAFETY: the caller's.
                            unsafe {
                                asm!(concat!("ld.", $ordering, $scope, ".global.u32 {0}, [{1}];"),
                                    out(reg32) value, in(reg64) address, options(nostack))
                            }
                        };
                    }
                    match scope {
                        Scope::Block => load!(".cta"),
                        Scope::Device => load!(".gpu"),
                        Scope::System => load!(".sys"),
                    }
                    value
                }
                emulated { crate::emulator::atomic::load(stringify!($name), address, Order::$order, scope) }
            }
        }
    )+};
}

loads! {
    /// Loads `*address`, acquiring what its writer released.
    load_acquire_u32, "acquire", Acquire;
    /// Loads `*address`, which others may write at the same time; orders nothing.
    load_relaxed_u32, "relaxed", Relaxed;
}

macro_rules! stores {
    ($($(#[$doc:meta])* $name:ident, $ordering:literal, $order:ident;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(address: *mut u32, value: u32, scope: Scope) {
            bodies! {
                ptx {
                    macro_rules! store {
                        ($scope:literal) => {
                            // SAFETY: the caller's.
                            unsafe {
                                asm!(concat!("st.", $ordering, $scope, ".global.u32 [{0}], {1};"),
                                    in(reg64) address, in(reg32) value, options(nostack))
                            }
                        };
                    }
                    match scope {
                        Scope::Block => store!(".cta"),
                        Scope::Device => store!(".gpu"),
                        Scope::System => store!(".sys"),
                    }
                }
                emulated { crate::emulator::atomic::store(address, value, Order::$order, scope) }
            }
        }
    )+};
}

stores! {
    /// Stores `value`, releasing what this thread wrote (and what was made visible to it before).
    store_release_u32, "release", Release;
    /// Stores `value` where others may read and write at the same time; orders nothing.
    store_relaxed_u32, "relaxed", Relaxed;
}

/// Makes this thread's writes to shared and global memory visible to the async proxy (bulk copies,
/// `wgmma`); needs sm_90. A barrier carries it to other threads.
#[inline(always)]
#[track_caller]
pub fn fence_proxy_async() {
    bodies! {
        // SAFETY: touches no memory.
        ptx { unsafe { asm!("fence.proxy.async;", options(nostack)) } }
        emulated { crate::emulator::proxy::fence_async() }
    }
}
