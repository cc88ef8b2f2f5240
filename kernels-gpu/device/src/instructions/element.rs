//! The 16-bit element types of K, V and Q.

use super::bodies;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

mod sealed {
    pub trait Sealed {}
}

/// A 16-bit floating-point type that tensor cores multiply.
pub trait Element: sealed::Sealed + Copy + 'static {
    /// Whether this is [`Bf16`]; otherwise it is [`F16`].
    const IS_BF16: bool;

    /// See [`super::math::pack`].
    fn pack(low: f32, high: f32) -> u32;

    /// See [`super::math::unpack`].
    fn unpack(word: u32) -> [f32; 2];

    /// See [`super::math::fma_pairs`].
    fn fma(a: u32, b: u32, c: u32) -> u32;
}

/// bfloat16: `f32`'s exponent, 8 bits of precision.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

/// IEEE 754 binary16: 11 bits of precision, at most 65504.
#[derive(Clone, Copy, Debug)]
pub struct F16;

impl sealed::Sealed for Bf16 {}
impl sealed::Sealed for F16 {}

impl Element for Bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        bodies! {
            ptx {
                let word: u32;
                // SAFETY: arithmetic.
                unsafe {
                    asm!("cvt.rn.bf16x2.f32 {0}, {1}, {2};", out(reg32) word, in(reg32) high,
                        in(reg32) low, options(pure, nomem, nostack));
                }
                word
            }
            emulated { crate::emulator::math::pack_bf16(low, high) }
        }
    }

    #[inline(always)]
    fn unpack(word: u32) -> [f32; 2] {
        [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
    }

    #[inline(always)]
    fn fma(a: u32, b: u32, c: u32) -> u32 {
        bodies! {
            ptx {
                let word: u32;
                // SAFETY: arithmetic.
                unsafe {
                    asm!("fma.rn.bf16x2 {0}, {1}, {2}, {3};", out(reg32) word, in(reg32) a,
                        in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
                }
                word
            }
            emulated { crate::emulator::math::fma_bf16(a, b, c) }
        }
    }
}

impl Element for F16 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        bodies! {
            ptx {
                let word: u32;
                // SAFETY: arithmetic.
                unsafe {
                    asm!("cvt.rn.f16x2.f32 {0}, {1}, {2};", out(reg32) word, in(reg32) high,
                        in(reg32) low, options(pure, nomem, nostack));
                }
                word
            }
            emulated { crate::emulator::math::pack_f16(low, high) }
        }
    }

    #[inline(always)]
    fn unpack(word: u32) -> [f32; 2] {
        bodies! {
            ptx {
                let (low, high): (f32, f32);
                // SAFETY: arithmetic.
                unsafe {
                    asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2};",
                        "cvt.f32.f16 {0}, l; cvt.f32.f16 {1}, h; }}",
                        out(reg32) low, out(reg32) high, in(reg32) word,
                        options(pure, nomem, nostack));
                }
                [low, high]
            }
            emulated { crate::emulator::math::unpack_f16(word) }
        }
    }

    #[inline(always)]
    fn fma(a: u32, b: u32, c: u32) -> u32 {
        bodies! {
            ptx {
                let word: u32;
                // SAFETY: arithmetic.
                unsafe {
                    asm!("fma.rn.f16x2 {0}, {1}, {2}, {3};", out(reg32) word, in(reg32) a,
                        in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
                }
                word
            }
            emulated { crate::emulator::math::fma_f16(a, b, c) }
        }
    }
}
