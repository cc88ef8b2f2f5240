//! Shuffles, votes and barriers.

use kernels_gpu::selftest;
use rand::RngExt;

use super::{Case, random_words, rng};

pub(super) fn cases() -> Vec<Case> {
    let votes = [
        ("by chance", random_words(1, 64).iter().map(|word| word & 1).collect()),
        ("none", vec![0; 64]),
        ("all of one warp", [[1; 32], [0; 32]].concat()),
        ("all but one lane", (0..64).map(|i| u32::from(i != 45)).collect()),
    ];
    let votes = votes.map(|(what, bits)| vote(bits).named(what));
    [vec![shuffle()], votes.to_vec(), vec![barrier()]].concat()
}

fn shuffle() -> Case {
    let values = random_words(0, 32);
    let mut rng = rng(3);
    let sources: Vec<usize> = (0..32).map(|_| rng.random_range(0..32)).collect();
    let input = (0..32).flat_map(|lane| [values[lane], sources[lane] as u32]);
    let output = (0..32).flat_map(|lane| {
        let other = |mask: usize| values[lane ^ mask];
        [other(1), other(2), other(4), other(8), other(16), other(31), values[sources[lane]]]
    });
    Case::exact("selftest_shuffles", selftest::shuffles, 32, input.collect(), output.collect())
}

fn vote(bits: Vec<u32>) -> Case {
    let output = (0..64).flat_map(|thread| {
        let warp = thread / 32;
        let lanes = &bits[warp * 32..warp * 32 + 32];
        let mask = (0..32).fold(0, |mask, lane| mask | lanes[lane] << lane);
        let all = lanes.iter().all(|bit| *bit == 1);
        [mask, u32::from(lanes.contains(&1)), u32::from(all), 1, warp as u32]
    });
    let output = output.collect();
    Case::exact("selftest_votes", selftest::votes, 64, bits, output)
}

fn barrier() -> Case {
    let values: Vec<u32> = random_words(2, 128).iter().map(|word| word >> 1).collect();
    let output = (0..128).map(|thread| match thread {
        0..64 => 2 * values[63 - thread],
        _ => values[thread],
    });
    let output = output.collect();
    Case::exact("selftest_barriers", selftest::barriers, 128, values, output)
}
