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

/// `fma.rn.bf16x2`.
pub fn fma_bf16(a: u32, b: u32, c: u32) -> u32 {
    fma_lanes([a, b, c], |bits| bf16::from_bits(bits).to_f32(), |x| bf16::from_f32(x).to_bits())
}

/// `fma.rn.f16x2`.
pub fn fma_f16(a: u32, b: u32, c: u32) -> u32 {
    fma_lanes([a, b, c], |bits| f16::from_bits(bits).to_f32(), |x| f16::from_f32(x).to_bits())
}

fn fma_lanes(words: [u32; 3], value: impl Fn(u16) -> f32, bits: impl Fn(f32) -> u16) -> u32 {
    let lane = |shift: u32| {
        let [a, b, c] = words.map(|word| f64::from(value((word >> shift) as u16)));
        u32::from(bits(to_odd(a * b + c))) << shift
    };
    lane(0) | lane(16)
}

/// The f32 next to a number towards zero, with its last bit set if it is another: as good as the number itself to whoever
/// rounds it to fewer bits.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() {
        return near;
    }
    let beyond = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
}
