//! Order between blocks.

use kernels_gpu::selftest;

use super::{Case, random_words};

pub(super) fn cases() -> Vec<Case> {
    vec![last_arriver(), message()]
}

fn values(seed: u64) -> Vec<u32> {
    random_words(seed, 64).iter().map(|word| word >> 8).collect()
}

fn last_arriver() -> Case {
    let (values, blocks) = (values(40), 8);
    let mut output = vec![blocks];
    for block in 0..blocks {
        output.extend(values.iter().map(|value| value * (block + 1)));
    }
    output.extend(values.iter().map(|value| value * (1..=blocks).sum::<u32>()));
    let mut before = vec![u32::MAX; output.len()];
    before[0] = 0;
    Case {
        blocks,
        before: Some(before),
        ..Case::exact("selftest_last_arriver", selftest::last_arriver, 64, values, output)
    }
}

fn message() -> Case {
    let values = values(41);
    let mut output = vec![1, 64];
    for step in 1..=2 {
        output.extend(values.iter().map(|value| value + step));
    }
    let mut before = vec![u32::MAX; output.len()];
    before[..2].fill(0);
    Case {
        blocks: 2,
        before: Some(before),
        ..Case::exact("selftest_message", selftest::message, 64, values, output)
    }
}
