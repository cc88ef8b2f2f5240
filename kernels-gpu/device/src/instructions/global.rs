//! Global memory: loads, stores and prefetches (PTX ISA, "ld", "ld.global.nc", "st").

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

macro_rules! scalar {
    ($($load:ident, $load_nc:ident, $store:ident, $type:ty, $class:ident, $suffix:literal;)+) => {$(
        #[doc = concat!("Loads a `", stringify!($type), "`.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: *const $type) -> $type {
            bodies! {
                ptx {
                    let value: $type;
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ld.global.", $suffix, " {0}, [{1}];"),
                            out($class) value, in(reg64) address, options(nostack, readonly));
                    }
                    value
                }
                emulated { crate::emulator::global::load(address) }
            }
        }

        #[doc = concat!("Loads a `", stringify!($type), "` that nothing writes while the kernel runs.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned; no thread writes it during the kernel.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load_nc(address: *const $type) -> $type {
            bodies! {
                ptx {
                    let value: $type;
                    // SAFETY: the caller's; memory that nothing writes may be read at any time.
                    unsafe {
                        asm!(concat!("ld.global.nc.", $suffix, " {0}, [{1}];"),
                            out($class) value, in(reg64) address, options(nostack, readonly));
                    }
                    value
                }
                emulated { crate::emulator::global::load(address) }
            }
        }

        #[doc = concat!("Stores a `", stringify!($type), "`.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: *mut $type, value: $type) {
            bodies! {
                ptx {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("st.global.", $suffix, " [{0}], {1};"),
                            in(reg64) address, in($class) value, options(nostack));
                    }
                }
                emulated { crate::emulator::global::store(address, value) }
            }
        }
    )+};
}

scalar! {
    load_u16, load_nc_u16, store_u16, u16, reg16, "u16";
    load_u32, load_nc_u32, store_u32, u32, reg32, "u32";
    load_f32, load_nc_f32, store_f32, f32, reg32, "f32";
    load_u64, load_nc_u64, store_u64, u64, reg64, "u64";
}

macro_rules! vector {
    ($($load:ident, $load_nc:ident, $store:ident, $type:ty, $count:literal, $suffix:literal, $list:literal, ($($i:tt)+);)+) => {$(
        #[doc = concat!("Loads ", stringify!($count), " consecutive `", stringify!($type), "`s.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and a multiple of the vector's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: *const $type) -> [$type; $count] {
            bodies! {
                ptx {
                    let mut value = [<$type>::default(); $count];
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ld.global.", $suffix, " {{", $list, "}}, [{address}];"),
                            $(out(reg32) value[$i],)+ address = in(reg64) address,
                            options(nostack, readonly));
                    }
                    value
                }
                emulated { crate::emulator::global::load(address.cast::<[$type; $count]>()) }
            }
        }

        #[doc = concat!("Loads ", stringify!($count), " consecutive `", stringify!($type),
            "`s that nothing writes while the kernel runs and that are read once: they do not stay in L1.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and a multiple of the vector's size; no thread writes
        /// there during the kernel.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load_nc(address: *const $type) -> [$type; $count] {
            bodies! {
                ptx {
                    let mut value = [<$type>::default(); $count];
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ld.global.nc.L1::no_allocate.", $suffix, " {{", $list, "}}, [{address}];"),
                            $(out(reg32) value[$i],)+ address = in(reg64) address,
                            options(nostack, readonly));
                    }
                    value
                }
                emulated { crate::emulator::global::load(address.cast::<[$type; $count]>()) }
            }
        }

        #[doc = concat!("Stores ", stringify!($count), " consecutive `", stringify!($type), "`s.")]
        ///
        /// # Safety
        /// `address` is in global memory, valid and a multiple of the vector's size.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: *mut $type, value: [$type; $count]) {
            bodies! {
                ptx {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("st.global.", $suffix, " [{address}], {{", $list, "}};"),
                            $(in(reg32) value[$i],)+ address = in(reg64) address, options(nostack));
                    }
                }
                emulated { crate::emulator::global::store(address.cast::<[$type; $count]>(), value) }
            }
        }
    )+};
}

vector! {
    load_v2_u32, load_nc_v2_u32, store_v2_u32, u32, 2, "v2.u32", "{0}, {1}", (0 1);
    load_v4_u32, load_nc_v4_u32, store_v4_u32, u32, 4, "v4.u32", "{0}, {1}, {2}, {3}", (0 1 2 3);
    load_v2_f32, load_nc_v2_f32, store_v2_f32, f32, 2, "v2.f32", "{0}, {1}", (0 1);
    load_v4_f32, load_nc_v4_f32, store_v4_f32, f32, 4, "v4.f32", "{0}, {1}, {2}, {3}", (0 1 2 3);
}
