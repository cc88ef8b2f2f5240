//! E4M3: `[64 * D]` codes of a byte, then `detail` scales in f32: one, or one a token.

use super::{Format, token_of};
use crate::abi::PAGE_TOKENS;
use device::shared::Shared;
use device::{Element, math};

/// 8-bit floating point; `detail` is the number of scales, 1 or 64.
#[derive(Clone, Copy, Debug)]
pub struct Fp8;

impl Format for Fp8 {
    type Piece = ([u32; 2], f32);

    #[inline(always)]
    unsafe fn load<const D: usize>(half: Shared<u8>, detail: u32, piece: u32) -> Self::Piece {
        let scales = half.offset(PAGE_TOKENS * D as u32).cast::<f32>();
        let scale = scales.at(token_of::<D>(piece) & (detail - 1));
        // SAFETY: the caller's.
        unsafe { (half.cast::<[u32; 2]>().at(piece).load(), scale.load()) }
    }

    #[inline(always)]
    fn decode<E: Element>((codes, scale): Self::Piece) -> [u32; 4] {
        let [[a, b], [c, d]] = codes.map(|word| {
            let [a, b, c, d] = math::unpack_e4m3(word).map(|code| code * scale);
            [math::pack::<E>(a, b), math::pack::<E>(c, d)]
        });
        [a, b, c, d]
    }
}
