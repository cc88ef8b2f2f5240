//! Shared memory: its address, loads and stores (PTX ISA, "ld", "st").

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Declares a block's dynamic shared memory; once in a crate of kernels, at its root.
///
/// An instruction is part of the crate that calls it, and so must be what it names.
#[macro_export]
macro_rules! dynamic_shared_memory {
    () => {
        #[cfg(target_arch = "nvptx64")]
        ::core::arch::global_asm!(".extern .shared .align 1024 .b8 dynamic_shared_memory[];");
    };
}

/// Address of the block's dynamic shared memory, a multiple of 1024.
#[inline(always)]
pub fn dynamic_shared() -> u32 {
    bodies! {
        ptx {
            let address: u32;
            // SAFETY: takes an address.
            unsafe {
                asm!("mov.u32 {0}, dynamic_shared_memory;",
                    out(reg32) address, options(pure, nomem, nostack));
            }
            address
        }
        emulated { crate::emulator::shared::dynamic_base() }
    }
}

macro_rules! scalar {
    ($($load:ident, $store:ident, $type:ty, $class:ident, $suffix:literal;)+) => {$(
        #[doc = concat!("Loads a `", stringify!($type), "`.")]
        ///
        /// # Safety
        /// `address` is valid and a multiple of the value's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: u32) -> $type {
            bodies! {
                ptx {
                    let value: $type;
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ld.shared.", $suffix, " {0}, [{1}];"),
                            out($class) value, in(reg32) address, options(nostack));
                    }
                    value
                }
                emulated { crate::emulator::shared::load(address) }
            }
        }

        #[doc = concat!("Stores a `", stringify!($type), "`.")]
        ///
        /// # Safety
        /// `address` is valid and a multiple of the value's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: u32, value: $type) {
            bodies! {
                ptx {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("st.shared.", $suffix, " [{0}], {1};"),
                            in(reg32) address, in($class) value, options(nostack));
                    }
                }
                emulated { crate::emulator::shared::store(address, value) }
            }
        }
    )+};
}

scalar! {
    load_u16, store_u16, u16, reg16, "u16";
    load_u32, store_u32, u32, reg32, "u32";
    load_f32, store_f32, f32, reg32, "f32";
    load_u64, store_u64, u64, reg64, "u64";
}

macro_rules! vector {
    ($($load:ident, $store:ident, $type:ty, $count:literal, $suffix:literal, $list:literal, ($($i:tt)+);)+) => {$(
        #[doc = concat!("Loads ", stringify!($count), " consecutive `", stringify!($type), "`s.")]
        ///
        /// # Safety
        /// `address` is valid and a multiple of the vector's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: u32) -> [$type; $count] {
            bodies! {
                ptx {
                    let mut value = [<$type>::default(); $count];
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ld.shared.", $suffix, " {{", $list, "}}, [{address}];"),
                            $(out(reg32) value[$i],)+ address = in(reg32) address, options(nostack));
                    }
                    value
                }
                emulated { crate::emulator::shared::load(address) }
            }
        }

        #[doc = concat!("Stores ", stringify!($count), " consecutive `", stringify!($type), "`s.")]
        ///
        /// # Safety
        /// `address` is valid and a multiple of the vector's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: u32, value: [$type; $count]) {
            bodies! {
                ptx {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("st.shared.", $suffix, " [{address}], {{", $list, "}};"),
                            $(in(reg32) value[$i],)+ address = in(reg32) address, options(nostack));
                    }
                }
                emulated { crate::emulator::shared::store(address, value) }
            }
        }
    )+};
}

vector! {
    load_v2_u32, store_v2_u32, u32, 2, "v2.u32", "{0}, {1}", (0 1);
    load_v4_u32, store_v4_u32, u32, 4, "v4.u32", "{0}, {1}, {2}, {3}", (0 1 2 3);
    load_v2_f32, store_v2_f32, f32, 2, "v2.f32", "{0}, {1}", (0 1);
    load_v4_f32, store_v4_f32, f32, 4, "v4.f32", "{0}, {1}, {2}, {3}", (0 1 2 3);
}
