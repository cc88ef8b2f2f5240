//! Arithmetic and conversions.

use super::{own_words, store_own_words};
use device::{Bf16, F16, math};
use kernel_macros::kernel;

/// `input: [threads][3]`: a, b, c. `output: [threads][7]`: 2^a, log2 |b|, tanh a, 1/b, 1/sqrt |b|,
/// a * b + c, max(a, b).
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 256,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_arithmetic)
)]
#[inline(always)]
pub unsafe fn arithmetic(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        let [a, b, c] = own_words(input).map(f32::from_bits);
        let magnitude = f32::from_bits(b.to_bits() & 0x7fff_ffff);
        let results = [
            math::exp2(a),
            math::log2(magnitude),
            math::tanh(a),
            math::reciprocal(b),
            math::reciprocal_sqrt(magnitude),
            math::fma(a, b, c),
            math::max(a, b),
        ];
        store_own_words(output, results.map(f32::to_bits));
    }
}

/// `input: [threads][2]`: low, high. `output: [threads][6]`: both packed as bf16 and as f16, then the halves of
/// each unpacked.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 128,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_conversions)
)]
#[inline(always)]
pub unsafe fn conversions(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        let [low, high] = own_words(input).map(f32::from_bits);
        let (bf16, f16) = (math::pack::<Bf16>(low, high), math::pack::<F16>(low, high));
        let [a, b] = math::unpack::<Bf16>(bf16).map(f32::to_bits);
        let [c, d] = math::unpack::<F16>(f16).map(f32::to_bits);
        store_own_words(output, [bf16, f16, a, b, c, d]);
    }
}

/// `input: [threads][3]`: words a, b, c of two elements. `output: [threads][2]`: a * b + c in bf16, and in f16.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 256,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_pairs)
)]
#[inline(always)]
pub unsafe fn pairs(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        let [a, b, c] = own_words(input);
        let results = [math::fma_pairs::<Bf16>(a, b, c), math::fma_pairs::<F16>(a, b, c)];
        store_own_words(output, results);
    }
}
