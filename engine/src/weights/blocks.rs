//! How ggml's blocks are decoded, in vectors.
//!
//! Every value is the float that the format's definition gives in f32, whatever the vectors: products are rounded
//! before anything is added to them.

use std::any::Any;
use std::sync::LazyLock;

use deft::f16;
use pulp::{Simd, cast};

/// Elements that are decoded at once.
pub(crate) const GROUP: usize = 32;

/// A way to store elements: blocks of whole groups.
pub(crate) trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// Groups of a block.
    const GROUPS: usize;

    /// Group `index` of `block`, which has [`Self::BYTES`].
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], index: usize) -> [f32; GROUP];
}

/// All numbers of 16 bits: scales are looked up.
static HALVES: LazyLock<Box<[f32; 1 << 16]>> = LazyLock::new(|| {
    let all = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
    let all = all.collect::<Box<[f32]>>().try_into();
    all.expect("as many as there are")
});

/// What decodes.
#[derive(Clone, Copy)]
pub(crate) struct Vectors<S> {
    simd: S,
    halves: &'static [f32; 1 << 16],
}

impl<S: Simd> Vectors<S> {
    pub(crate) fn new(simd: S) -> Self {
        let halves = &HALVES;
        Self { simd, halves }
    }

    /// The 16-bit float at byte `at`.
    #[inline(always)]
    fn half(self, block: &[u8], at: usize) -> f32 {
        self.halves[usize::from(u16::from_le_bytes(part(block, at)))]
    }

    /// `scale q`.
    #[inline(always)]
    fn scaled(self, q: [i8; 16], scale: f32) -> [f32; 16] {
        let mut values = self.widen_bytes(q);
        let scale = self.simd.splat_f32s(scale);
        for value in S::as_mut_simd_f32s(&mut values).0 {
            *value = self.simd.mul_f32s(scale, *value);
        }
        values
    }

    /// `scale q + least`.
    #[inline(always)]
    fn affine(self, q: [i8; 16], scale: f32, least: f32) -> [f32; 16] {
        let mut values = self.scaled(q, scale);
        let least = self.simd.splat_f32s(least);
        for value in S::as_mut_simd_f32s(&mut values).0 {
            *value = self.simd.add_f32s(*value, least);
        }
        values
    }

    #[inline(always)]
    fn widen_bytes(self, q: [i8; 16]) -> [f32; 16] {
        // `pulp` has no widening, and compilers make gathers of a loop.
        #[cfg(target_arch = "x86_64")]
        {
            let simd: &dyn Any = &self.simd;
            if let Some(v4) = simd.downcast_ref::<pulp::x86::V4>() {
                let q = v4.avx512f._mm512_cvtepi8_epi32(cast(q));
                return cast(v4.avx512f._mm512_cvtepi32_ps(q));
            }
            if let Some(v3) = simd.downcast_ref::<pulp::x86::V3>() {
                let halves: [u64; 2] = cast(q);
                return cast(halves.map(|half| {
                    let q = v3.avx2._mm256_cvtepi8_epi32(cast([half, 0]));
                    v3.avx._mm256_cvtepi32_ps(q)
                }));
            }
        }
        q.map(f32::from)
    }

    #[inline(always)]
    fn widen_words(self, q: [u16; 16]) -> [u32; 16] {
        #[cfg(target_arch = "x86_64")]
        {
            let simd: &dyn Any = &self.simd;
            if let Some(v4) = simd.downcast_ref::<pulp::x86::V4>() {
                return cast(v4.avx512f._mm512_cvtepu16_epi32(cast(q)));
            }
            if let Some(v3) = simd.downcast_ref::<pulp::x86::V3>() {
                let halves: [[u16; 8]; 2] = cast(q);
                return cast(halves.map(|half| v3.avx2._mm256_cvtepu16_epi32(cast(half))));
            }
        }
        q.map(u32::from)
    }

    /// 16-bit floats, without a look-up each.
    #[inline(always)]
    fn widen_halves(self, bits: [u16; 16]) -> [f32; 16] {
        let (simd, mut values) = (self.simd, self.widen_words(bits));
        let splat = |bits| simd.splat_u32s(bits);
        for value in S::as_mut_simd_u32s(&mut values).0 {
            let magnitude = simd.and_u32s(*value, splat(0x7fff));
            let shifted = simd.wrapping_dyn_shl_u32s(magnitude, splat(13));
            // Infinities and NaNs keep the largest exponent; all others have 112 added.
            let special = simd.less_than_u32s(splat(0x0f7f_ffff), shifted);
            let offset = simd.select_u32s(special, splat(0x7000_0000), splat(0x3800_0000));
            let normal = simd.add_u32s(shifted, offset);
            // Below the least normal number: what is more than 2^-14.
            let base = splat(0x3880_0000);
            let tiny = simd.sub_f32s(
                simd.transmute_f32s_u32s(simd.add_u32s(shifted, base)),
                simd.transmute_f32s_u32s(base),
            );
            let is_tiny = simd.less_than_u32s(shifted, splat(0x0080_0000));
            let result = simd.select_u32s(is_tiny, simd.transmute_u32s_f32s(tiny), normal);
            let sign = simd.and_u32s(*value, splat(0x8000));
            *value = simd.or_u32s(result, simd.wrapping_dyn_shl_u32s(sign, splat(16)));
        }
        cast(values)
    }
}

#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("blocks are BYTES long")
}

#[inline(always)]
fn low(bytes: [u8; 16]) -> [i8; 16] {
    bytes.map(|byte| (byte & 15) as i8)
}

#[inline(always)]
fn high(bytes: [u8; 16]) -> [i8; 16] {
    bytes.map(|byte| (byte >> 4) as i8)
}

/// Half `half` of a group's four bits: the low bits of all bytes come first.
#[inline(always)]
fn nibbles(bytes: [u8; 16], half: usize) -> [i8; 16] {
    if half == 0 { low(bytes) } else { high(bytes) }
}

/// A group of two halves, each of which the body makes of its number. No closure: what is not inlined has none of the caller's
/// instruction sets, and is several times as slow.
macro_rules! halves {
    (|$half:ident| $body:expr) => {{
        let first: [f32; 16] = {
            let $half = 0;
            $body
        };
        let second: [f32; 16] = {
            let $half = 1;
            $body
        };
        cast::<[[f32; 16]; 2], [f32; GROUP]>([first, second])
    }};
}

/// 32-bit floats.
pub(crate) struct F32;

impl Block for F32 {
    const BYTES: usize = 4 * GROUP;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(_: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let values: [[u8; 4]; GROUP] = cast(part::<{ 4 * GROUP }>(block, 0));
        values.map(f32::from_le_bytes)
    }
}

#[inline(always)]
fn words(block: &[u8], half: usize) -> [u16; 16] {
    let words: [[u8; 2]; 16] = cast(part::<32>(block, 32 * half));
    words.map(u16::from_le_bytes)
}

/// 16-bit floats.
pub(crate) struct F16;

impl Block for F16 {
    const BYTES: usize = 2 * GROUP;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        halves!(|half| vectors.widen_halves(words(block, half)))
    }
}

/// The upper 16 bits of 32-bit floats.
pub(crate) struct Bf16;

impl Block for Bf16 {
    const BYTES: usize = 2 * GROUP;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        halves!(|half| {
            let words = vectors.widen_words(words(block, half));
            words.map(|word| f32::from_bits(word << 16))
        })
    }
}

/// `d`, then 4 bits an element: `d (q - 8)`.
pub(crate) struct Q4_0;

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let (scale, bytes) = (vectors.half(block, 0), part(block, 2));
        halves!(|half| vectors.scaled(nibbles(bytes, half).map(|q| q - 8), scale))
    }
}

/// `d` and `m`, then 4 bits an element: `d q + m`.
pub(crate) struct Q4_1;

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let (scale, least) = (vectors.half(block, 0), vectors.half(block, 2));
        let bytes = part(block, 4);
        halves!(|half| vectors.affine(nibbles(bytes, half), scale, least))
    }
}

/// Five bits an element: four as nibbles, and a bit of 32, at byte `at`.
#[inline(always)]
fn five_bits(block: &[u8], at: usize, half: usize) -> [i8; 16] {
    let fifth = u32::from_le_bytes(part(block, at)) >> (16 * half);
    let mut q = nibbles(part(block, at + 4), half);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((fifth >> i & 1) << 4) as i8;
    }
    q
}

/// `d`, the fifth bits, then nibbles: `d (q - 16)`.
pub(crate) struct Q5_0;

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let scale = vectors.half(block, 0);
        halves!(|half| vectors.scaled(five_bits(block, 2, half).map(|q| q - 16), scale))
    }
}

/// `d` and `m`, the fifth bits, then nibbles: `d q + m`.
pub(crate) struct Q5_1;

impl Block for Q5_1 {
    const BYTES: usize = 24;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let (scale, least) = (vectors.half(block, 0), vectors.half(block, 2));
        halves!(|half| vectors.affine(five_bits(block, 4, half), scale, least))
    }
}

/// `d`, then a signed byte an element: `d q`.
pub(crate) struct Q8_0;

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], _: usize) -> [f32; GROUP] {
        let scale = vectors.half(block, 0);
        halves!(|half| vectors.scaled(cast(part::<16>(block, 2 + 16 * half)), scale))
    }
}

/// Scale and least value of a group of `Q4_K` or `Q5_K`: `d` and `dmin` times six bits each, of twelve bytes. The
/// first four groups have them in bytes of their own, whose upper two bits are those of the last four.
#[inline(always)]
fn six_bits<S: Simd>(vectors: Vectors<S>, block: &[u8], index: usize) -> (f32, f32) {
    let bytes: [u8; 12] = part(block, 4);
    let (scale, least) = if index < 4 {
        (bytes[index] & 63, bytes[index + 4] & 63)
    } else {
        let (low, upper) = (bytes[index + 4], |at: usize| bytes[at] >> 6 << 4);
        (low & 15 | upper(index - 4), low >> 4 | upper(index))
    };
    let (d, dmin) = (vectors.half(block, 0), vectors.half(block, 2));
    (d * f32::from(scale), -(dmin * f32::from(least)))
}

/// Nibbles of 256 elements, 16 of group `index`: two groups share 32 bytes.
#[inline(always)]
fn shared_nibbles(block: &[u8], at: usize, index: usize, half: usize) -> [i8; 16] {
    nibbles(part(block, at + index / 2 * 32 + 16 * half), index % 2)
}

/// `d`, `dmin`, six-bit scales, then nibbles of eight groups: `d s q - dmin m`.
pub(crate) struct Q4K;

impl Block for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], index: usize) -> [f32; GROUP] {
        let (scale, least) = six_bits(vectors, block, index);
        halves!(|half| vectors.affine(shared_nibbles(block, 16, index, half), scale, least))
    }
}

/// As [`Q4K`], with fifth bits before the nibbles: bit `g` of byte `i` is that of element `i` of group `g`.
pub(crate) struct Q5K;

impl Block for Q5K {
    const BYTES: usize = 176;
    const GROUPS: usize = 8;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], index: usize) -> [f32; GROUP] {
        let (scale, least) = six_bits(vectors, block, index);
        halves!(|half| {
            let fifth: [u8; 16] = part(block, 16 + 16 * half);
            let mut q = shared_nibbles(block, 48, index, half);
            for (q, byte) in q.iter_mut().zip(fifth) {
                *q |= ((byte >> index & 1) << 4) as i8;
            }
            vectors.affine(q, scale, least)
        })
    }
}

/// Nibbles, then two bits an element, a signed scale for every 16, and `d`: `d s (q - 32)`. Four groups share 64
/// bytes of nibbles and 32 of bits.
pub(crate) struct Q6K;

impl Block for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 8;

    #[inline(always)]
    fn group<S: Simd>(vectors: Vectors<S>, block: &[u8], index: usize) -> [f32; GROUP] {
        let (quarter, within) = (index / 4, index % 4);
        let d = vectors.half(block, 208);
        halves!(|half| {
            let lower = part(block, 64 * quarter + 32 * (within % 2) + 16 * half);
            let upper: [u8; 16] = part(block, 128 + 32 * quarter + 16 * half);
            let mut q = nibbles(lower, within / 2);
            for (q, byte) in q.iter_mut().zip(upper) {
                *q = (*q | ((byte >> (2 * within) & 3) << 4) as i8) - 32;
            }
            let scale = block[192 + 2 * index + half] as i8;
            vectors.scaled(q, d * f32::from(scale))
        })
    }
}

#[cfg(test)]
mod tests;
