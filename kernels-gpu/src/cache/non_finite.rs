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
