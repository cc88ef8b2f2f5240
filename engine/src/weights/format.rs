//! How elements are stored in files, and back to f32.

use pulp::{Arch, Simd, WithSimd};

use super::blocks::{self, Block, GROUP, Vectors};

/// How a row of elements is stored. Quantised formats are ggml's: blocks of 32 or 256 elements of one row.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper 16 bits of 32-bit floats.
    Bf16,
    /// A scale `d` in f16, then 32 x 4 bits: `d (q - 8)`. Element `i` is in the low half of byte `i`,
    /// element `16 + i` in its high half.
    Q4_0,
    /// `d` and a least value `m` in f16, then 32 x 4 bits as in `Q4_0`: `d q + m`.
    Q4_1,
    /// `d`, 32 fifth bits, then 4 bits as in `Q4_0`: `d (q - 16)`.
    Q5_0,
    /// `d` and `m`, 32 fifth bits, then 4 bits as in `Q4_0`: `d q + m`.
    Q5_1,
    /// `d` in f16, then 32 signed bytes: `d q`.
    Q8_0,
    /// 256 elements: `d` and `dmin` in f16, a scale `s` and a least value `m` of six bits for every 32, then 4 bits:
    /// `d s q - dmin m`.
    Q4K,
    /// As `Q4K`, with 5 bits.
    Q5K,
    /// 256 elements of 6 bits, a signed byte `s` for every 16, and `d` in f16: `d s (q - 32)`.
    Q6K,
}

/// Something that is done with a format's blocks.
pub(crate) trait WithBlock {
    type Output;

    fn run<B: Block>(self) -> Self::Output;
}

impl Format {
    /// Does `what` with blocks of this format; floats are taken 32 at a time.
    pub(crate) fn with_block<W: WithBlock>(self, what: W) -> W::Output {
        match self {
            Self::F32 => what.run::<blocks::F32>(),
            Self::F16 => what.run::<blocks::F16>(),
            Self::Bf16 => what.run::<blocks::Bf16>(),
            Self::Q4_0 => what.run::<blocks::Q4_0>(),
            Self::Q4_1 => what.run::<blocks::Q4_1>(),
            Self::Q5_0 => what.run::<blocks::Q5_0>(),
            Self::Q5_1 => what.run::<blocks::Q5_1>(),
            Self::Q8_0 => what.run::<blocks::Q8_0>(),
            Self::Q4K => what.run::<blocks::Q4K>(),
            Self::Q5K => what.run::<blocks::Q5K>(),
            Self::Q6K => what.run::<blocks::Q6K>(),
        }
    }

    /// Elements that are stored together; a row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        self.block().0
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.block().1
    }

    /// Elements and bytes.
    fn block(self) -> (usize, usize) {
        struct Size;
        impl WithBlock for Size {
            type Output = (usize, usize);

            fn run<B: Block>(self) -> (usize, usize) {
                (B::GROUPS * GROUP, B::BYTES)
            }
        }
        match (self, self.with_block(Size)) {
            (Self::F32 | Self::F16 | Self::Bf16, (elements, bytes)) => (1, bytes / elements),
            (_, block) => block,
        }
    }

    /// Bytes of `elements` elements; `None` if those are no whole blocks, or too many.
    pub(crate) fn bytes(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// Writes the elements stored in `bytes` to `out`; there are as many blocks in both.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(self.bytes(out.len() as u64), Some(bytes.len() as u64));
        self.dequantize_by(Arch::new(), bytes, out);
    }

    pub(super) fn dequantize_by(self, arch: Arch, bytes: &[u8], out: &mut [f32]) {
        self.with_block(Dequantize { arch, bytes, out });
    }
}

struct Dequantize<'a> {
    arch: Arch,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl WithBlock for Dequantize<'_> {
    type Output = ();

    fn run<B: Block>(self) {
        let elements = B::GROUPS * GROUP;
        let (bytes, rest_bytes) = self.bytes.split_at(self.bytes.len() / B::BYTES * B::BYTES);
        let (out, rest) = self.out.split_at_mut(bytes.len() / B::BYTES * elements);
        self.arch.dispatch(Blocks::<B>::new(bytes, out));
        if rest.is_empty() {
            return;
        }
        // Floats that are not a whole group.
        let mut block = vec![0; B::BYTES];
        block[..rest_bytes.len()].copy_from_slice(rest_bytes);
        let mut group = vec![0.0; elements];
        self.arch.dispatch(Blocks::<B>::new(&block, &mut group));
        rest.copy_from_slice(&group[..rest.len()]);
    }
}

/// Whole blocks to decode.
struct Blocks<'a, B> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    block: std::marker::PhantomData<B>,
}

impl<'a, B> Blocks<'a, B> {
    fn new(bytes: &'a [u8], out: &'a mut [f32]) -> Self {
        let block = std::marker::PhantomData;
        Self { bytes, out, block }
    }
}

impl<B: Block> WithSimd for Blocks<'_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = Vectors::new(simd);
        let out = self.out.as_chunks_mut::<GROUP>().0;
        let blocks = self.bytes.chunks_exact(B::BYTES);
        for (block, out) in blocks.zip(out.chunks_exact_mut(B::GROUPS)) {
            for (index, out) in out.iter_mut().enumerate() {
                *out = B::group(vectors, block, index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deft::{bf16, f16};

    use super::*;

    fn stored(format: Format, bytes: &[u8], elements: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; elements];
        format.dequantize(bytes, &mut out);
        out
    }

    #[test]
    fn floats_come_back() {
        let values = [1.5_f32, -0.25, 65_504.0, 0.0];
        let bytes = |to: fn(f32) -> Vec<u8>| values.iter().flat_map(|&x| to(x)).collect::<Vec<_>>();
        let f32s = bytes(|x| x.to_le_bytes().to_vec());
        assert_eq!(stored(Format::F32, &f32s, 4), values);
        let f16s = bytes(|x| f16::from_f32(x).to_le_bytes().to_vec());
        assert_eq!(stored(Format::F16, &f16s, 4), values);
        let bf16s = bytes(|x| bf16::from_f32(x).to_le_bytes().to_vec());
        assert_eq!(stored(Format::Bf16, &bf16s, 4), [1.5, -0.25, 65_536.0, 0.0]);
    }

    /// Two blocks: scales 0.5 and -2, a least value of 3 where there is one, and byte `i` = `17 i` mod 256.
    fn two_blocks(format: Format, least: bool) -> Vec<f32> {
        let mut bytes = Vec::new();
        for scale in [0.5, -2.0] {
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            if least {
                bytes.extend(f16::from_f32(3.0).to_le_bytes());
            }
            let rest = format.block_bytes() - if least { 4 } else { 2 };
            bytes.extend((0..rest).map(|i| (17 * i) as u8));
        }
        stored(format, &bytes, 64)
    }

    #[test]
    fn blocks_are_scaled_each_by_its_own_scale() {
        // Byte 17 i is i in both halves.
        let q4_0 = two_blocks(Format::Q4_0, false);
        let q4_1 = two_blocks(Format::Q4_1, true);
        let q8_0 = two_blocks(Format::Q8_0, false);
        for i in 0..64 {
            let scale = if i < 32 { 0.5 } else { -2.0 };
            let nibble = (i % 16) as f32;
            assert_eq!(q4_0[i], scale * (nibble - 8.0));
            assert_eq!(q4_1[i], scale * nibble + 3.0);
            assert_eq!(q8_0[i], scale * f32::from((17 * (i % 32)) as u8 as i8));
        }
    }

    #[test]
    fn low_and_high_halves_of_a_byte_are_sixteen_elements_apart() {
        let mut block = vec![0; 18];
        block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
        block[2 + 5] = 0x3a;
        let values = stored(Format::Q4_0, &block, 32);
        assert_eq!((values[5], values[21]), (2.0, -5.0));
    }

    #[test]
    fn rows_of_broken_blocks_have_no_size() {
        assert_eq!(Format::Q4_1.bytes(64), Some(40));
        assert_eq!(Format::Q4_1.bytes(33), None);
        assert_eq!(Format::F32.bytes(u64::MAX), None);
    }
}
