//! Deterministic numbers, the same on every machine and for any number of threads.

/// A counter through SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014): random access, so arrays fill in parallel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// Word `index` of the sequence that starts here.
    pub(crate) fn at(self, index: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number of `range`, both ends included.
    pub(crate) fn between(&mut self, first: u32, last: u32) -> u32 {
        let count = u64::from(last - first) + 1;
        first + ((u128::from(self.next()) * u128::from(count)) >> 64) as u32
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() as u32 - 1) as usize]
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.between(0, last as u32) as usize;
            items.swap(last, other);
        }
    }
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Two numbers that are close to normal with mean 0 and deviation 1: sums of four bytes each.
pub(crate) fn normal_pair(word: u64) -> [f32; 2] {
    // Four uniform bytes have mean 510 and variance 4 (256^2 - 1) / 12.
    let sum = |half: u32| {
        half.to_le_bytes()
            .iter()
            .map(|&byte| f32::from(byte))
            .sum::<f32>()
    };
    [word as u32, (word >> 32) as u32].map(|half| (sum(half) - 510.0) / 147.8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_close_to_normal() {
        let random = Random::new(3);
        let values: Vec<f64> = (0..50_000)
            .flat_map(|i| normal_pair(random.at(i)))
            .map(f64::from)
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
