//! Integer codes: `[64 * D]` codes of 4 or 2 bits, then all scales, then all zeros, of the element type.

use super::{Half, token_of};
use crate::abi::PAGE_TOKENS;
use device::shared::Shared;
use device::{Element, math};

/// Packed at an address.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    half: Shared<u8>,
    bits: u32,
    /// The lowest bits of both lanes.
    mask: u32,
    /// Logarithm of the pieces that a word has.
    pieces: u32,
}

impl Packed {
    /// Of `bits` bits: 4 or 2.
    #[inline(always)]
    pub(super) fn new(half: Shared<u8>, bits: u32) -> Self {
        Self { half, bits, mask: ((1 << bits) - 1) * 0x0001_0001, pieces: u32::from(bits == 2) }
    }

    /// The codes of a piece, from bit 0 of both lanes on. The pieces of a word are 32 apart, so that a warp's words lie side
    /// by side.
    #[inline(always)]
    unsafe fn load(self, piece: u32) -> u32 {
        let word = (piece >> (5 + self.pieces) << 5) + piece % 32;
        // SAFETY: the caller's.
        let word = unsafe { self.half.cast::<u32>().at(word).load() };
        word >> ((piece >> 5 & self.pieces) * 8)
    }

    /// What lies behind the codes.
    #[inline(always)]
    fn behind<const D: usize>(self) -> Shared<u8> {
        self.half.offset(PAGE_TOKENS * D as u32 / 8 * self.bits)
    }

    /// `scale * code + zero` of a pair of dims, the `index`th of its piece.
    #[inline(always)]
    fn element<E: Element>(self, codes: u32, index: u32, scale: u32, zero: u32) -> u32 {
        // Below a leading one that is worth 128 (1,024 in f16) the mantissa's last place is worth 1.
        let (base, minus, one) = if E::IS_BF16 {
            (0x4300_4300, 0xc300_c300, 0x3f80_3f80)
        } else {
            (0x6400_6400, 0xe400_e400, 0x3c00_3c00)
        };
        let code = codes >> (self.bits * index) & self.mask | base;
        math::fma_pairs::<E>(math::fma_pairs::<E>(code, one, minus), scale, zero)
    }
}

/// Every 32 tokens of a channel have a scale and a zero.
#[derive(Clone, Copy)]
pub(super) struct ChannelGroups(pub(super) Packed);

impl Half for ChannelGroups {
    type Piece = (u32, [[u32; 4]; 2]);

    #[inline(always)]
    unsafe fn load<const D: usize>(self, piece: u32) -> Self::Piece {
        let chunks = D as u32 / 8;
        let scales = self.0.behind::<D>().cast::<[u32; 4]>();
        let scales = scales.at(token_of::<D>(piece) / 32 * chunks + piece / 8 % chunks);
        let zeros = scales.at(PAGE_TOKENS / 32 * chunks);
        // SAFETY: the caller's.
        unsafe { (self.0.load(piece), [scales.load(), zeros.load()]) }
    }

    #[inline(always)]
    fn decode<E: Element>(self, (codes, [scales, zeros]): Self::Piece) -> [u32; 4] {
        core::array::from_fn(|i| self.0.element::<E>(codes, i as u32, scales[i], zeros[i]))
    }
}

/// Groups of channels of a token have a scale and a zero.
#[derive(Clone, Copy)]
pub(super) struct TokenGroups {
    codes: Packed,
    /// Logarithms of the chunks of eight dims that a group has, and of a token's groups.
    chunks: u32,
    groups: u32,
}

impl TokenGroups {
    /// Groups of `group` channels.
    #[inline(always)]
    pub(super) fn new<const D: usize>(codes: Packed, group: u32) -> Self {
        let chunks = (group / 8).trailing_zeros();
        Self { codes, chunks, groups: (D as u32 / 8).trailing_zeros() - chunks }
    }
}

impl Half for TokenGroups {
    type Piece = (u32, [u16; 2]);

    #[inline(always)]
    unsafe fn load<const D: usize>(self, piece: u32) -> Self::Piece {
        let (token, chunk) = (token_of::<D>(piece), piece / 8 % (D as u32 / 8));
        let scales = self.codes.behind::<D>().cast::<u16>();
        let scale = scales.at((token << self.groups) + (chunk >> self.chunks));
        let zero = scale.at(PAGE_TOKENS << self.groups);
        // SAFETY: the caller's.
        unsafe { (self.codes.load(piece), [scale.load(), zero.load()]) }
    }

    #[inline(always)]
    fn decode<E: Element>(self, (codes, affine): Self::Piece) -> [u32; 4] {
        let [scale, zero] = affine.map(|x| u32::from(x) * 0x0001_0001);
        core::array::from_fn(|i| self.codes.element::<E>(codes, i as u32, scale, zero))
    }
}
