//! The device's arithmetic, in the host's.

use half::{bf16, f16};

use crate::emulator::wgmma::settled;

/// Subnormal numbers as zero of the same sign (`.ftz`).
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// `ex2.approx.ftz.f32`.
#[track_caller]
pub fn exp2(x: f32) -> f32 {
    flush(flush(settled(x)).exp2())
}

/// `lg2.approx.ftz.f32`.
#[track_caller]
pub fn log2(x: f32) -> f32 {
    flush(settled(x)).log2()
}

/// `tanh.approx.f32`.
#[track_caller]
pub fn tanh(x: f32) -> f32 {
    settled(x).tanh()
}

/// `rcp.approx.ftz.f32`.
#[track_caller]
pub fn reciprocal(x: f32) -> f32 {
    flush(1.0 / flush(settled(x)))
}

/// `rsqrt.approx.ftz.f32`.
#[track_caller]
pub fn reciprocal_sqrt(x: f32) -> f32 {
    flush(1.0 / flush(settled(x)).sqrt())
}

/// `fma.rn.f32`.
#[track_caller]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    settled(a).mul_add(settled(b), settled(c))
}

/// `atom.add.f32` of global memory: subnormal numbers are 0.
#[track_caller]
pub fn add_flushed(a: f32, b: f32) -> f32 {
    let flush = |x: f32| {
        if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
    };
    flush(flush(settled(a)) + flush(settled(b)))
}

/// `max.f32`: a NaN gives way.
#[track_caller]
pub fn max(a: f32, b: f32) -> f32 {
    settled(a).max(settled(b))
}

/// `cvt.rn.bf16x2.f32`.
#[track_caller]
pub fn pack_bf16(low: f32, high: f32) -> u32 {
    let bits = |x| u32::from(bf16::from_f32(settled(x)).to_bits());
    bits(low) | bits(high) << 16
}

/// `cvt.rn.f16x2.f32`.
#[track_caller]
pub fn pack_f16(low: f32, high: f32) -> u32 {
    let bits = |x| u32::from(f16::from_f32(settled(x)).to_bits());
    bits(low) | bits(high) << 16
}

/// Two `cvt.f32.f16`.
pub fn unpack_f16(word: u32) -> [f32; 2] {
    [word, word >> 16].map(|half| f16::from_bits(half as u16).to_f32())
}

/// `cvt.rn.f16x2.e4m3x2`, twice, and four `cvt.f32.f16`.
pub fn unpack_e4m3(word: u32) -> [f32; 4] {
    word.to_le_bytes().map(|code| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 512.0,
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    })
}
