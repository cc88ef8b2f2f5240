//! Numbers in bytes: codes of a few bits, scales and zeros, and the quantiser of a group.

use half::{bf16, f16};

use crate::cache::{DType, KvElement};

/// Writes numbers of `dtype`, rounded to nearest.
pub(super) fn put(dtype: DType, values: impl Iterator<Item = f32>, bytes: &mut [u8]) {
    let places = bytes.chunks_exact_mut(dtype.bytes()).zip(values);
    match dtype {
        DType::F16 => {
            places.for_each(|(to, x)| to.copy_from_slice(&f16::from_f32(x).to_le_bytes()))
        }
        DType::Bf16 => {
            places.for_each(|(to, x)| to.copy_from_slice(&bf16::from_f32(x).to_le_bytes()));
        }
        DType::F32 => places.for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes())),
    }
}

/// Reads numbers of `dtype`.
pub(super) fn get(dtype: DType, bytes: &[u8], values: &mut [f32]) {
    fn all<T: KvElement>(bytes: &[u8], values: &mut [f32]) {
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
            *value = bytemuck::pod_read_unaligned::<T>(bytes).to_f32();
        }
    }
    match dtype {
        DType::F16 => all::<f16>(bytes, values),
        DType::Bf16 => all::<bf16>(bytes, values),
        DType::F32 => all::<f32>(bytes, values),
    }
}

/// The nearest number of `dtype`.
pub(super) fn round(dtype: DType, value: f64) -> f32 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f32(),
        DType::Bf16 => bf16::from_f64(value).to_f32(),
        DType::F32 => value as f32,
    }
}

/// A group's scale and zero: element = `scale * code + zero`, codes from 0 to `2^bits - 1`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) zero: f32,
    most: f64,
}

impl Affine {
    /// The least element is the zero, and `scale` takes the codes to the largest; both as `dtype` stores them. A group
    /// of equal elements has scale 0.
    pub(super) fn of(dtype: DType, bits: u32, group: impl Iterator<Item = f32>) -> Self {
        let (mut least, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
        for value in group {
            least = least.min(value);
            largest = largest.max(value);
        }
        let most = f64::from((1u32 << bits) - 1);
        let zero = round(dtype, f64::from(least));
        let scale = round(dtype, (f64::from(largest) - f64::from(zero)) / most);
        Self { scale, zero, most }
    }

    /// The code nearest to `value`, ties to even.
    pub(super) fn code(&self, value: f32) -> u8 {
        if self.scale == 0.0 {
            return 0;
        }
        let steps = (f64::from(value) - f64::from(self.zero)) / f64::from(self.scale);
        steps.round_ties_even().clamp(0.0, self.most) as u8
    }
}

/// What a code stands for: the nearest f32, for the product is exact.
#[inline(always)]
pub(super) fn element(scale: f32, zero: f32, code: u8) -> f32 {
    scale * f32::from(code) + zero
}

/// Byte and bit at which the code of element `index` of a native page lies. A *piece*, eight dims of a token, has its codes
/// in words of two lanes of 16 bits, dims of even number in the low lane: as tensor cores read pairs.
#[inline(always)]
pub(super) fn place(bits: u32, index: usize) -> (usize, u32) {
    let (piece, dim) = (index / 8, index % 8);
    let lane = dim as u32 % 2 * 16;
    let (word, bit) = match bits {
        8 => (2 * piece + dim / 4, dim as u32 / 2 % 2 * 8),
        4 => (piece, dim as u32 / 2 * 4),
        // A word has two pieces, 32 apart.
        _ => (piece / 64 * 32 + piece % 32, piece as u32 / 32 % 2 * 8 + dim as u32 / 2 * 2),
    };
    let bit = lane + bit;
    (4 * word + bit as usize / 8, bit % 8)
}

/// The code of element `index`.
#[inline(always)]
pub(super) fn code_at(codes: &[u8], bits: u32, index: usize) -> u8 {
    let (byte, bit) = place(bits, index);
    codes[byte] >> bit & ((1u32 << bits) - 1) as u8
}

/// Quantises `values` in `groups` of places, each of which is rounded between its least and largest: codes of `bits`
/// bits, and then all scales before all zeros in `params`.
pub(super) fn quantise<G: Iterator<Item = usize> + Clone>(
    (dtype, bits): (DType, u32),
    values: &[f32],
    groups: impl Iterator<Item = G>,
    codes: &mut [u8],
    params: &mut [u8],
) {
    codes.fill(0);
    let mut affine = Vec::with_capacity(params.len() / (2 * dtype.bytes()));
    for places in groups {
        let group = Affine::of(dtype, bits, places.clone().map(|at| values[at]));
        for at in places {
            let (byte, bit) = place(bits, at);
            codes[byte] |= group.code(values[at]) << bit;
        }
        affine.push(group);
    }
    let (scales, zeros) = params.split_at_mut(affine.len() * dtype.bytes());
    put(dtype, affine.iter().map(|group| group.scale), scales);
    put(dtype, affine.iter().map(|group| group.zero), zeros);
}

/// All scales, then all zeros, of as many groups as [`quantise`] wrote.
pub(super) fn affine(dtype: DType, params: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; params.len() / dtype.bytes()];
    get(dtype, params, &mut values);
    values
}
