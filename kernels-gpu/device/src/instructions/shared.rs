//! Shared memory: typed addresses, loads and stores (PTX ISA, "ld", "st").

use core::fmt;
use core::marker::PhantomData;

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

/// The address of a `T` in the block's shared memory: 32 bits, of PTX's state space "shared". A generic
/// pointer would be twice as wide, and cost generic loads.
///
/// An address is as unchecked as a pointer: what it is used for must be there.
///
/// ```compile_fail,E0308
/// # use deft_device::shared::Shared;
/// fn first(words: Shared<u32>) -> Shared<f32> {
///     words // another type: `cast` says that it is meant
/// }
/// ```
#[repr(transparent)]
pub struct Shared<T> {
    address: u32,
    value: PhantomData<*mut T>,
}

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({:#x})", self.address)
    }
}

impl<T> Shared<T> {
    /// The `T` at byte `address` of the state space.
    #[inline(always)]
    pub const fn from_address(address: u32) -> Self {
        Self { address, value: PhantomData }
    }

    /// Byte address in the state space.
    #[inline(always)]
    pub const fn address(self) -> u32 {
        self.address
    }

    /// The `T` that is `index` of them further on.
    #[inline(always)]
    pub const fn at(self, index: u32) -> Self {
        self.offset(index * size_of::<T>() as u32)
    }

    /// The `T` that begins `bytes` further on.
    #[inline(always)]
    pub const fn offset(self, bytes: u32) -> Self {
        Self::from_address(self.address + bytes)
    }

    /// The same place, as a `U`'s.
    #[inline(always)]
    pub const fn cast<U>(self) -> Shared<U> {
        Shared::from_address(self.address)
    }
}

impl<T: Value> Shared<T> {
    /// Loads the value.
    ///
    /// # Safety
    /// The address is valid and a multiple of the value's size.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn load(self) -> T {
        // SAFETY: the caller's.
        unsafe { T::load(self) }
    }

    /// Stores `value`.
    ///
    /// # Safety
    /// The address is valid and a multiple of the value's size.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store(self, value: T) {
        // SAFETY: the caller's.
        unsafe { T::store(self, value) }
    }
}

/// Address of the block's dynamic shared memory, a multiple of 1024.
#[inline(always)]
pub fn dynamic_shared_mem<T>() -> Shared<T> {
    bodies! {
        ptx {
            let address: u32;
            // SAFETY: takes an address.
            unsafe {
                asm!("mov.u32 {0}, dynamic_shared_memory;",
                    out(reg32) address, options(pure, nomem, nostack));
            }
            Shared::from_address(address)
        }
        emulated { Shared::from_address(crate::emulator::shared::dynamic_base()) }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What one instruction loads and stores: a word, or a vector of words that lies on a multiple of its size.
pub trait Value: sealed::Sealed + Copy {
    #[doc(hidden)]
    unsafe fn load(address: Shared<Self>) -> Self;

    #[doc(hidden)]
    unsafe fn store(address: Shared<Self>, value: Self);
}

macro_rules! scalar {
    ($($type:ty, $class:ident, $suffix:literal;)+) => {$(
        impl sealed::Sealed for $type {}

        impl Value for $type {
            #[inline(always)]
            #[track_caller]
            unsafe fn load(address: Shared<Self>) -> Self {
                bodies! {
                    ptx {
                        let value: $type;
                        // SAFETY: the caller's.
                        unsafe {
                            asm!(concat!("ld.shared.", $suffix, " {0}, [{1}];"),
                                out($class) value, in(reg32) address.address, options(nostack));
                        }
                        value
                    }
                    emulated { crate::emulator::shared::load(address.address) }
                }
            }

            #[inline(always)]
            #[track_caller]
            unsafe fn store(address: Shared<Self>, value: Self) {
                bodies! {
                    ptx {
                        // SAFETY: the caller's.
                        unsafe {
                            asm!(concat!("st.shared.", $suffix, " [{0}], {1};"),
                                in(reg32) address.address, in($class) value, options(nostack));
                        }
                    }
                    emulated { crate::emulator::shared::store(address.address, value) }
                }
            }
        }
    )+};
}

scalar! {
    u16, reg16, "u16";
    u32, reg32, "u32";
    f32, reg32, "f32";
    u64, reg64, "u64";
}

macro_rules! vector {
    ($($type:ty, $count:literal, $suffix:literal, $list:literal, ($($i:tt)+);)+) => {$(
        impl sealed::Sealed for [$type; $count] {}

        impl Value for [$type; $count] {
            #[inline(always)]
            #[track_caller]
            unsafe fn load(address: Shared<Self>) -> Self {
                bodies! {
                    ptx {
                        let mut value = [<$type>::default(); $count];
                        // SAFETY: the caller's.
                        unsafe {
                            asm!(concat!("ld.shared.", $suffix, " {{", $list, "}}, [{address}];"),
                                $(out(reg32) value[$i],)+ address = in(reg32) address.address, options(nostack));
                        }
                        value
                    }
                    emulated { crate::emulator::shared::load(address.address) }
                }
            }

            #[inline(always)]
            #[track_caller]
            unsafe fn store(address: Shared<Self>, value: Self) {
                bodies! {
                    ptx {
                        // SAFETY: the caller's.
                        unsafe {
                            asm!(concat!("st.shared.", $suffix, " [{address}], {{", $list, "}};"),
                                $(in(reg32) value[$i],)+ address = in(reg32) address.address, options(nostack));
                        }
                    }
                    emulated { crate::emulator::shared::store(address.address, value) }
                }
            }
        }
    )+};
}

vector! {
    u32, 2, "v2.u32", "{0}, {1}", (0 1);
    u32, 4, "v4.u32", "{0}, {1}, {2}, {3}", (0 1 2 3);
    f32, 2, "v2.f32", "{0}, {1}", (0 1);
    f32, 4, "v4.f32", "{0}, {1}, {2}, {3}", (0 1 2 3);
}
