//! Gumbel noise by counter.

use crate::random::{entry_bits, step_seed};
use device::{global, math};

/// How rows are sampled.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Number of each row's stream of noise, `[rows]`.
    pub streams: *const u32,
    /// Each row's step within its stream, `[rows]`; positions serve.
    pub steps: *const u32,
    /// What all rows share, [`crate::random::settings`], in memory: a captured launch serves every seed and temperature.
    pub settings: *const u32,
}

impl Sampling {
    /// The noise of row `row`.
    ///
    /// # Safety
    /// The row has a stream and a step, and there are settings.
    #[inline(always)]
    pub(super) unsafe fn noise(&self, row: u32) -> Noise<true> {
        // SAFETY: the caller's.
        let (stream, step, low, high, temperature) = unsafe {
            (
                global::load_u32(self.streams.add(row as usize)),
                global::load_u32(self.steps.add(row as usize)),
                global::load_u32(self.settings),
                global::load_u32(self.settings.add(1)),
                global::load_u32(self.settings.add(2)),
            )
        };
        let seed = u64::from(low) | u64::from(high) << 32;
        Noise { seed: step_seed(seed, stream, step), temperature: f32::from_bits(temperature) }
    }
}

/// A row's noise; none without `ON`.
#[derive(Clone, Copy)]
pub(super) struct Noise<const ON: bool> {
    seed: u64,
    temperature: f32,
}

impl Noise<false> {
    pub(super) const NONE: Self = Self { seed: 0, temperature: 0.0 };
}

impl<const ON: bool> Noise<ON> {
    /// Logit `x` of entry `entry` with its noise.
    #[inline(always)]
    pub(super) fn add(&self, entry: u32, x: f32) -> f32 {
        if ON { math::fma(self.temperature, gumbel(entry_bits(self.seed, entry)), x) } else { x }
    }
}

/// Below this `-ln(1 - v)` is summed as a series, whose first term left out is 4e-7 of it: the logarithm's error does
/// not shrink with its result, and small results are what makes an entry win.
const SERIES_BELOW: f32 = 0.125;

/// `-ln(-ln(1 - v))` for `v = (bits + 1/2) / 2^32`: finite, from -2.9 to 22.9.
#[inline(always)]
fn gumbel(bits: u32) -> f32 {
    const LN_2: f32 = core::f32::consts::LN_2;
    const LARGEST: f32 = 1.0 - f32::EPSILON / 2.0;
    let v = (bits as f32 + 0.5) * (1.0 / 4_294_967_296.0);
    let exponential = if v < SERIES_BELOW {
        let mut sum = 1.0 / 6.0;
        for coefficient in [1.0 / 5.0, 1.0 / 4.0, 1.0 / 3.0, 1.0 / 2.0, 1.0] {
            sum = math::fma(sum, v, coefficient);
        }
        sum * v
    } else {
        let v = if v < LARGEST { v } else { LARGEST };
        -LN_2 * math::log2(1.0 - v)
    };
    -LN_2 * math::log2(exponential)
}
