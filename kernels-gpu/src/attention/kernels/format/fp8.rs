//! E4M3: `[64 * D]` codes of a byte, then scales in f32, one or one a token.

use super::{Half, token_of};
use crate::abi::PAGE_TOKENS;
use device::shared::Shared;
use device::{Element, math};

/// 8-bit floating point; `TOKENS`: every token has a scale.
#[derive(Clone, Copy)]
pub(super) struct Fp8<const TOKENS: bool> {
    codes: Shared<[u32; 2]>,
    scales: Shared<f32>,
    /// The scale of all tokens, as [`factor`] has it.
    factor: u32,
}

/// What the numbers of [`pair`] are multiplied with, twice: an element's scale, and the powers of two between their
/// exponents and those of codes. Scales are of the element type, so it is exact.
#[inline(always)]
fn factor<E: Element>(scale: f32) -> u32 {
    let scale = scale * if E::IS_BF16 { (1u128 << 120) as f32 } else { 256.0 };
    math::pack::<E>(scale, scale)
}

/// The codes in the high bytes of both lanes, as elements: sign, exponent and mantissa where the type has them.
#[inline(always)]
fn pair<E: Element>(codes: u32) -> u32 {
    let magnitude = if E::IS_BF16 { codes >> 4 & 0x07f0_07f0 } else { codes >> 1 & 0x3f80_3f80 };
    codes & 0x8000_8000 | magnitude
}

impl<const TOKENS: bool> Fp8<TOKENS> {
    /// The half page at `half`.
    #[inline(always)]
    pub(super) unsafe fn new<E: Element, const D: usize>(half: Shared<u8>) -> Self {
        let scales = half.offset(PAGE_TOKENS * D as u32).cast();
        // SAFETY: the caller's.
        let factor = if TOKENS { 0 } else { factor::<E>(unsafe { scales.load() }) };
        Self { codes: half.cast(), scales, factor }
    }
}

impl<const TOKENS: bool> Half for Fp8<TOKENS> {
    type Piece = ([u32; 2], f32);

    #[inline(always)]
    unsafe fn load<const D: usize>(self, piece: u32) -> Self::Piece {
        // SAFETY: the caller's.
        unsafe {
            let scale = if TOKENS { self.scales.at(token_of::<D>(piece)).load() } else { 0.0 };
            (self.codes.at(piece).load(), scale)
        }
    }

    #[inline(always)]
    fn decode<E: Element>(self, (codes, scale): Self::Piece) -> [u32; 4] {
        let factor = if TOKENS { factor::<E>(scale) } else { self.factor };
        let [low, high] = codes;
        [low << 8, low, high << 8, high].map(|codes| {
            // Less nothing: a zero keeps its sign.
            math::fma_pairs::<E>(pair::<E>(codes), factor, 0x8000_8000)
        })
    }
}
