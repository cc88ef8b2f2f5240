//! Arithmetic that `core` lacks or that rustc does not choose: approximate functions, fused
//! multiply-add, and conversion to 16 bits (PTX ISA, "Floating Point Instructions").

use super::bodies;
use super::element::Element;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(x: f32) -> f32 {
            bodies! {
                ptx {
                    let y: f32;
                    // SAFETY: arithmetic.
                    unsafe {
                        asm!(concat!($instruction, " {0}, {1};"),
                            out(reg32) y, in(reg32) x, options(pure, nomem, nostack));
                    }
                    y
                }
                emulated { crate::emulator::math::$name(x) }
            }
        }
    )+};
}

unary! {
    /// 2^x (relative error at most 2^-22; subnormal results are zero).
    exp2, "ex2.approx.ftz.f32";
    /// log2(x) (absolute error at most 2^-22 for x in 0.5..2, relative elsewhere).
    log2, "lg2.approx.ftz.f32";
    /// tanh(x) (relative error at most 2^-11).
    tanh, "tanh.approx.f32";
    /// 1/x (at most 1 ulp off).
    reciprocal, "rcp.approx.ftz.f32";
    /// 1/sqrt(x) (relative error at most 2^-22.9).
    reciprocal_sqrt, "rsqrt.approx.ftz.f32";
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    bodies! {
        ptx {
            let y: f32;
            // SAFETY: arithmetic.
            unsafe {
                asm!("fma.rn.f32 {0}, {1}, {2}, {3};", out(reg32) y, in(reg32) a, in(reg32) b,
                    in(reg32) c, options(pure, nomem, nostack));
            }
            y
        }
        emulated { crate::emulator::math::fma(a, b, c) }
    }
}

/// The larger of two numbers; a NaN gives way to the other.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    bodies! {
        ptx {
            let y: f32;
            // SAFETY: arithmetic.
            unsafe {
                asm!("max.f32 {0}, {1}, {2};", out(reg32) y, in(reg32) a, in(reg32) b,
                    options(pure, nomem, nostack));
            }
            y
        }
        emulated { crate::emulator::math::max(a, b) }
    }
}

/// Two numbers as 16-bit elements, rounded to nearest even: `low` in the low half.
#[inline(always)]
pub fn pack<E: Element>(low: f32, high: f32) -> u32 {
    E::pack(low, high)
}

/// The two 16-bit elements of a word as `f32`s, `[low, high]`.
#[inline(always)]
pub fn unpack<E: Element>(word: u32) -> [f32; 2] {
    E::unpack(word)
}

/// `a * b + c` of both 16-bit elements of words, rounded once; subnormal numbers are numbers.
#[inline(always)]
pub fn fma_pairs<E: Element>(a: u32, b: u32, c: u32) -> u32 {
    E::fma(a, b, c)
}
