//! How a token is kept whose V has a NaN or an infinity.
//!
//! `attend` multiplies V with probabilities that are 0 for tokens that a row does not see, and 0 times NaN is NaN. So V
//! in the pool is always finite: where eight dims of V are not, they are kept as zeros, and the same dims of K as NaN.
//! Logits of hidden tokens are replaced, whatever they are; so every row that sees the token becomes NaN, output and
//! LSE, and no other row does.

use super::Chunk;
use device::{Element, math};

/// NaN in both element types.
pub(crate) const NAN: Chunk = [0x7fff_7fff; 4];

/// What is kept of K where V is `v`.
#[inline(always)]
pub(crate) fn kept_key<E: Element>(k: Chunk, v: Chunk) -> Chunk {
    if is_finite::<E>(v) { k } else { NAN }
}

/// What is kept of V.
#[inline(always)]
pub(crate) fn kept_value<E: Element>(v: Chunk) -> Chunk {
    if is_finite::<E>(v) { v } else { [0; 4] }
}

/// Whether some bit of every element's exponent is not set.
#[inline(always)]
pub(crate) fn is_finite<E: Element>(chunk: Chunk) -> bool {
    let exponents = math::pack::<E>(f32::INFINITY, f32::INFINITY);
    let mut finite = true;
    for word in chunk {
        let unset = !word & exponents;
        finite &= unset & 0xffff != 0 && unset >> 16 != 0;
    }
    finite
}

/// Bit 15 of a half of a word is set in the result where that half of one of the chunk's words is not finite: an exponent of
/// ones carries. Less to compute than [`is_finite`], for many chunks of which hardly one is not.
#[inline(always)]
pub(crate) fn carries<E: Element>(chunk: Chunk) -> u32 {
    let exponents = math::pack::<E>(f32::INFINITY, f32::INFINITY);
    let lowest = exponents & !(exponents << 1);
    let mut carries = 0;
    for word in chunk {
        carries |= (word & exponents) + lowest;
    }
    carries & 0x8000_8000
}
