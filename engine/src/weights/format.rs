//! How elements are stored in files, and back to f32.

use deft::{bf16, f16};

/// Elements of a block of a quantised format.
const BLOCK: usize = 32;

/// How a row of elements is stored. Quantised formats are ggml's: blocks of 32 elements of one row.
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
    /// `d` in f16, then 32 signed bytes: `d q`.
    Q8_0,
}

impl Format {
    /// Elements that are stored together; a row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + BLOCK / 2,
            Self::Q4_1 => 4 + BLOCK / 2,
            Self::Q8_0 => 2 + BLOCK,
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
        match self {
            Self::F32 => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
                    *out = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Bf16 => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
                    *out = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Q4_0 => blocks(bytes, self, out, |block, out| {
                let scale = half_at(block, 0);
                nibbles(&block[2..], out, |q| scale * (f32::from(q) - 8.0));
            }),
            Self::Q4_1 => blocks(bytes, self, out, |block, out| {
                let (scale, least) = (half_at(block, 0), half_at(block, 2));
                nibbles(&block[4..], out, |q| scale * f32::from(q) + least);
            }),
            Self::Q8_0 => blocks(bytes, self, out, |block, out| {
                let scale = half_at(block, 0);
                for (&q, out) in block[2..].iter().zip(out) {
                    *out = scale * f32::from(q as i8);
                }
            }),
        }
    }
}

fn blocks(bytes: &[u8], format: Format, out: &mut [f32], each: impl Fn(&[u8], &mut [f32])) {
    let blocks = bytes.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
        each(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

#[cfg(test)]
mod tests {
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
