//! Random numbers by counter, shared by host and device so that both draw the same.
//!
//! Word `index` of the sequence of `seed` is SplitMix64's output of that number (Steele, Lea, Flood, "Fast
//! splittable pseudorandom number generators", 2014), so any thread has any word without those before it.

/// Word `index` of the sequence that `seed` names.
#[inline(always)]
pub const fn word(seed: u64, index: u64) -> u64 {
    let word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Element `index` of a tensor of uniform values from `-scale` to `scale`, before it is rounded to the tensor's
/// type: half of a word each, the low one first.
#[inline(always)]
pub fn uniform(seed: u64, index: u64, scale: f32) -> f32 {
    half_to_uniform((word(seed, index / 2) >> (index % 2 * 32)) as u32, scale)
}

/// 32 random bits as a value from `-scale` to `scale`.
#[inline(always)]
pub fn half_to_uniform(bits: u32, scale: f32) -> f32 {
    bits as i32 as f32 * (scale * (1.0 / 2_147_483_648.0))
}

/// Seed of the noise of a row that is sampled: stream `stream` of `seed`, at its step `step`.
#[inline(always)]
pub const fn step_seed(seed: u64, stream: u32, step: u32) -> u64 {
    word(word(seed, stream as u64), step as u64)
}

/// Random bits of entry `index` of a row that is sampled.
#[inline(always)]
pub const fn entry_bits(step_seed: u64, index: u32) -> u32 {
    (word(step_seed, index as u64 / 2) >> (index % 2 * 32)) as u32
}

/// What all rows of a sampling share, as words in memory: `seed` names the sequence of all streams, `temperature` is the
/// factor of the noise.
pub fn settings(seed: u64, temperature: f32) -> [u32; 3] {
    [seed as u32, (seed >> 32) as u32, temperature.to_bits()]
}

#[cfg(test)]
mod tests {
    use super::{step_seed, uniform, word};

    #[test]
    fn words_are_splitmix64s() {
        // The reference implementation's first outputs for seed 1234567 (Vigna, splitmix64.c).
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (index, expected) in expected.into_iter().enumerate() {
            assert_eq!(word(1_234_567, index as u64), expected);
        }
    }

    #[test]
    fn uniform_values_fill_their_range_evenly() {
        let (mut sum, mut squares, count) = (0.0, 0.0, 100_000);
        for index in 0..count {
            let value = f64::from(uniform(7, index, 0.5));
            assert!(value.abs() <= 0.5);
            sum += value;
            squares += value * value;
        }
        assert!((sum / count as f64).abs() < 3e-3);
        assert!((squares / count as f64 - 1.0 / 12.0).abs() < 1e-3);
    }

    #[test]
    fn steps_and_streams_have_noise_of_their_own() {
        assert_ne!(step_seed(1, 2, 3), step_seed(1, 3, 2));
        assert_ne!(step_seed(1, 2, 3), step_seed(2, 2, 3));
    }
}
