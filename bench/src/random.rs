//! The numbers that held-out workloads are drawn with: their rule is fixed, so the sequence is as well.

use kernels_gpu::random::word;

/// Words of `kernels_gpu::random`, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // The word before the first: a step of its sequence is this constant.
        let first = (seed ^ 0x5851_f42d_4c95_7f2d).wrapping_sub(0x9e37_79b9_7f4a_7c15);
        Self { seed: word(first, 0), drawn: 0 }
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        word(self.seed, self.drawn - 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
