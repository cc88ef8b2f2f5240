//! Arithmetic that `core` lacks or that rustc does not choose: approximate functions, fused
//! multiply-add, and conversion to 16 bits (PTX ISA, "Floating Point Instructions").

use super::bodies;
use super::element::Element;
#[cfg(target_arch = "nvptx64")]
use super::element::F16;
#[cfg(target_arch = "nvptx64")]
use crate::Arch;
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

/// The four E4M3 numbers of a word, the lowest byte's first.
#[inline(always)]
pub fn unpack_e4m3(word: u32) -> [f32; 4] {
    bodies! {
        ptx {
            let pairs: [u32; 2] = match super::ARCH {
                Arch::Sm90a => {
                    let (low, high): (u32, u32);
                    // SAFETY: arithmetic.
                    unsafe {
                        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2};",
                            "cvt.rn.f16x2.e4m3x2 {0}, l; cvt.rn.f16x2.e4m3x2 {1}, h; }}",
                            out(reg32) low, out(reg32) high, in(reg32) word,
                            options(pure, nomem, nostack));
                    }
                    [low, high]
                }
                // Sign, exponent and mantissa are where f16 has them: numbers come out 2^8 times too small.
                Arch::Sm80 => [word, word >> 16].map(|pair| {
                    let bytes = (pair & 0xff) << 8 | (pair & 0xff00) << 16;
                    bytes & 0x8000_8000 | (bytes & 0x7f00_7f00) >> 1
                }),
            };
            let scale = if matches!(super::ARCH, Arch::Sm80) { 256.0 } else { 1.0 };
            let [[a, b], [c, d]] = pairs.map(unpack::<F16>);
            [a, b, c, d].map(|x| x * scale)
        }
        emulated { crate::emulator::math::unpack_e4m3(word) }
    }
}
