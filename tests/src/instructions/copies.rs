//! Loads, stores and asynchronous copies.

use kernels_gpu::selftest;

use super::{Case, random_words};

pub(super) fn cases() -> Vec<Case> {
    vec![shared_widths(), global_widths(), bulk_copies(), async_copies()]
}

fn swap_halves(word: u32) -> u32 {
    word.rotate_left(16)
}

fn shared_widths() -> Case {
    let input = random_words(10, 256);
    // The kernel's steps: the halves of word 1 change places, then words 0 and 1, then the pairs.
    let output = input.chunks_exact(4).flat_map(|w| [w[2], w[3], swap_halves(w[1]), w[0]]);
    let output = output.collect();
    Case::exact("selftest_shared_widths", selftest::shared_widths, 64, input, output)
}

fn global_widths() -> Case {
    let input = random_words(11, 256);
    let output = input.chunks_exact(4).flat_map(|w| {
        let halves = w[2] & 0xffff | w[0] << 16;
        [w, w, w, w, &[w[0], w[1], halves, w[3]]].concat()
    });
    let output = output.collect();
    Case::exact("selftest_global_widths", selftest::global_widths, 64, input, output)
}

fn bulk_copies() -> Case {
    let input = random_words(12, 1024);
    let output = input.iter().map(|word| word.wrapping_add(1)).collect();
    Case::exact("selftest_bulk_copies", selftest::bulk_copies, 64, input, output)
}

fn async_copies() -> Case {
    let input = random_words(13, 512);
    let output = (0..64).flat_map(|thread| input[8 * (thread ^ 1)..][..8].to_vec());
    let output = output.collect();
    Case::exact("selftest_async_copies", selftest::async_copies, 64, input, output)
}
