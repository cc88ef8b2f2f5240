//! 8-bit floating point, E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, NaN is `0x7f` and `0xff`.
//!
//! ```text
//! codes   [8 token groups][head_dim / 8][8 tokens][8 dims] bytes
//! scales  one f32 and 12 zero bytes, or [64 tokens] f32
//! ```
//!
//! Of four dims the second and third are swapped ([`pack::place`]).
//!
//! An element is `scale * e4m3(code)`. The largest of those that share a scale has the code of 256: so a scale has no more
//! bits than an element, and the product, rounded once, is what multiplying in the element type gives. Larger codes would
//! only reach further down: numbers below 2^-14 of the largest one get fewer bits.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::CORE;

use super::PageShape;
use super::half::Half;
use super::pack;

/// The largest number of E4M3.
const LARGEST: f32 = 448.0;
/// What the largest element's code stands for.
const TOP: f32 = 256.0;
const SIDE: usize = CORE as usize;

/// What has a scale of its own.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Fp8Scale {
    /// K, and V, of a page's KV head.
    Head,
    /// Each token's K, and V.
    TokenHead,
}

/// The number that a code stands for.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code nearest to a number, ties to even mantissas; beyond 448 the code of 448. `0x7f` for NaN.
pub fn f32_to_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(LARGEST);
    // Numbers below 2^-6 are multiples of 2^-9, as those from there to 2^-5 are.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    // 16 steps are 8 of the next exponent; fewer than 8 have no leading one to take off.
    let code = (exponent + 6) * 8 + steps;
    sign | code as u8
}

impl Fp8Scale {
    fn scales(self) -> usize {
        match self {
            Self::Head => 1,
            Self::TokenHead => PAGE_TOKENS as usize,
        }
    }

    /// Which scale a row of eight dims has, rows counted in the page's order.
    fn of_row(self, row: usize, chunks: usize) -> usize {
        match self {
            Self::Head => 0,
            Self::TokenHead => row / SIDE / chunks * SIDE + row % SIDE,
        }
    }
}

impl Half for Fp8Scale {
    fn bytes(&self, shape: PageShape) -> usize {
        shape.half_elements() + (4 * self.scales()).next_multiple_of(16)
    }

    fn encode(&self, shape: PageShape, values: &[f32], _channels: &[u8], bytes: &mut [u8]) {
        let chunks = shape.head_dim as usize / SIDE;
        let (codes, params) = bytes.split_at_mut(shape.half_elements());
        let mut scales = vec![0.0f32; self.scales()];
        for (row, values) in values.chunks_exact(SIDE).enumerate() {
            let scale = &mut scales[self.of_row(row, chunks)];
            *scale = values.iter().fold(*scale, |most, value| most.max(value.abs()));
        }
        for scale in &mut scales {
            // A quotient by a number that is not normal would be of few bits.
            *scale = (*scale / TOP).max(f32::MIN_POSITIVE);
        }
        for (row, values) in values.chunks_exact(SIDE).enumerate() {
            let scale = scales[self.of_row(row, chunks)];
            for (dim, value) in values.iter().enumerate() {
                codes[pack::place(8, SIDE * row + dim).0] = f32_to_e4m3(value / scale);
            }
        }
        params.fill(0);
        for (to, scale) in params.chunks_exact_mut(4).zip(scales) {
            to.copy_from_slice(&scale.to_le_bytes());
        }
    }

    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]) {
        let chunks = shape.head_dim as usize / SIDE;
        let (codes, params) = bytes.split_at(shape.half_elements());
        let scales: Vec<f32> = params.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        for (row, values) in values.chunks_exact_mut(SIDE).enumerate() {
            let scale = scales[self.of_row(row, chunks)];
            for (dim, value) in values.iter_mut().enumerate() {
                *value = scale * TABLE[usize::from(pack::code_at(codes, 8, SIDE * row + dim))];
            }
        }
    }
}

/// [`e4m3_to_f32`] of every code.
static TABLE: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|code| e4m3_to_f32(code as u8)));
