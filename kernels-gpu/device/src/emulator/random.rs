//! The seed's choices.

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and good enough to permute schedules.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each block of a launch.
    pub(crate) fn new(seed: u64, block: u32) -> Self {
        let mut random = Self(seed ^ u64::from(block) << 32);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// True once in `n` on average.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Number of one of the bits set in `mask`, which is not 0.
    pub(crate) fn bit(&mut self, mask: u32) -> u32 {
        let start = self.below(32);
        (mask.rotate_right(start).trailing_zeros() + start) % 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_bit_and_no_other_is_chosen() {
        let mut random = Random::new(1, 2);
        for mask in [1, 0x8000_0000, 0x8421_0003, u32::MAX] {
            let seen = (0..2000).fold(0, |seen, _| seen | 1 << random.bit(mask));
            assert_eq!(seen, mask);
        }
    }

    #[test]
    fn blocks_and_seeds_have_streams_of_their_own() {
        let first = |seed, block| Random::new(seed, block).next();
        assert_ne!(first(0, 0), first(0, 1));
        assert_ne!(first(0, 0), first(1, 0));
        assert_eq!(first(5, 7), first(5, 7));
    }
}
