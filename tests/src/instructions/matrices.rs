//! Fragments of 8x8 matrices, and `mma`.

use device::{Bf16, F16};
use kernels_gpu::selftest;
use rand::seq::SliceRandom;

use super::{Case, Half, Values, matrix, product, rng};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![ldmatrix(), stmatrix()];
    for seed in 0..8 {
        for half in [Half::Bf16, Half::F16] {
            cases.push(mma(seed, half, Values::Whole).named("of whole numbers"));
            // Sums of 16 products of up to 4 each: an ulp of 64 for every addition.
            cases.push(mma(seed, half, Values::Any).within(1e-6, 16.0 * 64.0 * 1.2e-7));
        }
    }
    cases
}

fn word(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Element `[matrix][row][column]`: every one is another number.
fn element(matrix: usize, row: usize, column: usize) -> u16 {
    (1000 + 64 * matrix + 8 * row + column) as u16
}

/// Word of lane `lane`'s fragment of a matrix given by its elements (PTX ISA, "ldmatrix": lane `l` holds row
/// `l / 4`, columns `2 (l % 4)` and the next).
fn fragment(lane: usize, element: impl Fn(usize, usize) -> u16) -> u32 {
    let (row, column) = (lane / 4, 2 * (lane % 4));
    word(element(row, column), element(row, column + 1))
}

fn ldmatrix() -> Case {
    // Lane 8 m + r names any row: what it loads is row r of matrix m.
    let mut rows: Vec<usize> = (0..32).collect();
    rows.shuffle(&mut rng(4));
    let stored = (0..4).flat_map(|m| {
        (0..32)
            .map(move |i| word(element(m, i / 4, 2 * (i % 4)), element(m, i / 4, 2 * (i % 4) + 1)))
    });
    let input = stored.chain(rows.iter().map(|row| *row as u32));
    let loaded =
        |m: usize, r: usize, c: usize| element(rows[8 * m + r] / 8, rows[8 * m + r] % 8, c);
    let output = (0..32).flat_map(|lane| {
        let plain = move |m| fragment(lane, |r, c| loaded(m, r, c));
        let transposed = move |m| fragment(lane, |r, c| loaded(m, c, r));
        let x4 = [plain(0), plain(1), plain(2), plain(3)];
        let x4_transposed = [transposed(0), transposed(1), transposed(2), transposed(3)];
        [&x4[..], &x4_transposed, &x4[..2], &x4_transposed[..2]].concat()
    });
    Case::exact("selftest_ldmatrix", selftest::ldmatrix, 32, input.collect(), output.collect())
}

fn stmatrix() -> Case {
    let mut rows: Vec<usize> = (0..32).collect();
    rows.shuffle(&mut rng(5));
    let input = (0..32).flat_map(|lane| {
        let own = move |m| fragment(lane, |r, c| element(m, r, c));
        [own(0), own(1), own(2), own(3), rows[lane] as u32]
    });
    // Matrix m's row r goes to place rows[8 m + r].
    let store = |memory: &mut Vec<u32>, matrices: usize, transposed: bool| {
        for m in 0..matrices {
            for r in 0..8 {
                for pair in 0..4 {
                    let of = |c| {
                        if transposed { element(m, c, r) } else { element(m, r, c) }
                    };
                    memory[4 * rows[8 * m + r] + pair] = word(of(2 * pair), of(2 * pair + 1));
                }
            }
        }
    };
    let mut memory = vec![0; 128];
    let mut output = Vec::new();
    for (matrices, transposed) in [(4, false), (4, true), (2, false)] {
        store(&mut memory, matrices, transposed);
        output.extend_from_slice(&memory);
    }
    Case::exact("selftest_stmatrix", selftest::stmatrix, 32, input.collect(), output)
}

fn mma(seed: u64, half: Half, values: Values) -> Case {
    let mut rng = rng(100 + seed);
    let a = matrix(&mut rng, values, half, 16, 16);
    let b = matrix(&mut rng, values, half, 16, 8);
    let c = matrix(&mut rng, values, half, 16, 8);
    let result = product(&a, &b, &c);
    let pair = |low: f32, high: f32| word(half.bits(low), half.bits(high));
    let (mut input, mut output) = (Vec::new(), Vec::new());
    // PTX ISA, "Matrix Fragments for mma.m16n8k16".
    for lane in 0..32 {
        let (group, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            let row = if i % 2 == 0 { group } else { group + 8 };
            let column = 2 * t + if i < 2 { 0 } else { 8 };
            input.push(pair(a[row][column], a[row][column + 1]));
        }
        for i in 0..2 {
            let row = 2 * t + 8 * i;
            input.push(pair(b[row][group], b[row + 1][group]));
        }
        for (rows, words) in [(&c, &mut input), (&result, &mut output)] {
            for i in 0..4 {
                let row = if i < 2 { group } else { group + 8 };
                words.push(rows[row][2 * t + i % 2].to_bits());
            }
        }
    }
    match half {
        Half::Bf16 => Case::exact("selftest_mma_bf16", selftest::mma::<Bf16>, 32, input, output),
        Half::F16 => Case::exact("selftest_mma_f16", selftest::mma::<F16>, 32, input, output),
    }
}
