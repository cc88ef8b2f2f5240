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
