//! Every instruction set, and rows that see nothing.

use pulp::{Arch, Scalar};

use super::*;

const HEAD_DIM: usize = 64;
const ROWS: usize = 45;
const STRIDE: usize = 80;

fn values(seed: u32, count: usize) -> Vec<f32> {
    let value = |i: u32| (i + seed).wrapping_mul(2_654_435_761) >> 8;
    let values = (0..count as u32).map(|i| value(i) as f32 / (1 << 23) as f32 - 1.0);
    values.collect()
}

/// Two pages taken in by `step`, the second only by some rows and masked: O, maxima and sums. `bad`: it has a NaN in
/// K and an infinity in V, of two tokens.
fn run(bad: bool, step: impl Fn(PageStep<'_>)) -> [Vec<f32>; 3] {
    let q = values(1, HEAD_DIM * STRIDE);
    let mut o = vec![0.0; HEAD_DIM * STRIDE];
    let mut max = vec![f32::NEG_INFINITY; STRIDE];
    let mut sum = vec![0.0; STRIDE];
    let mut scores = vec![f32::NAN; SCORES];
    let words: Vec<u64> = (0..ROWS as u64 / 3).map(|row| 0x5a5 << (row % 7)).collect();
    let mask = PageMask { words: &words, group: 3 };
    let steps = [(64, 0..ROWS, None), (37, 6..ROWS - 3, Some(mask))];
    for (seed, (tokens, rows, mask)) in (2..).zip(steps) {
        let mut k = values(seed * 100, 64 * HEAD_DIM);
        let mut v = values(seed * 1000, 64 * HEAD_DIM);
        let mut room = Vec::new();
        if bad && mask.is_some() {
            k[element_offset(HEAD_DIM as u32, 10, 3) as usize] = f32::NAN;
            v[element_offset(HEAD_DIM as u32, 8, 5) as usize] = f32::INFINITY;
        }
        let (v, non_finite) =
            NonFinite::take(Arch::Scalar, &v, (HEAD_DIM, tokens), v.len(), &mut room);
        step(PageStep {
            tile: Tile { q: &q, o: &mut o, max: &mut max, sum: &mut sum, stride: STRIDE },
            scores: &mut scores,
            k: &k,
            v,
            tokens,
            rows,
            mask,
            bias: None,
            non_finite,
            soft_cap: None,
        });
    }
    // The maximum of a spoilt row is not used, and differs between processors.
    for (max, sum) in max.iter_mut().zip(&sum) {
        *max = if sum.is_nan() { f32::NAN } else { *max };
    }
    [o, max, sum]
}

#[test]
fn every_instruction_set_gives_what_plain_floats_give() {
    for bad in [false, true] {
        let plain = run(bad, |step| step.with_simd(Scalar));
        let best = run(bad, |step| Arch::new().dispatch(step));
        agree(&plain, &best);
        // With AVX-512 the best is something else.
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            agree(&plain, &run(bad, |step| Simd::vectorize(avx2, step)));
        }
        let [o, _, sum] = plain;
        let spoilt = sum[..ROWS].iter().filter(|sum| sum.is_nan()).count();
        assert_eq!(spoilt > 0, bad);
        assert!(spoilt < ROWS / 2, "most rows do not see token 10");
        assert_eq!(o[5 * STRIDE..][..ROWS].contains(&f32::INFINITY), bad);
    }
}

fn agree(plain: &[Vec<f32>; 3], vectors: &[Vec<f32>; 3]) {
    for (plain, vectors) in plain.iter().zip(vectors) {
        for (rows, expected) in vectors.chunks(STRIDE).zip(plain.chunks(STRIDE)) {
            for (value, expected) in rows[..ROWS].iter().zip(expected) {
                let close = (value - expected).abs() <= 1e-4 * expected.abs().max(1.0);
                let same = value == expected || value.is_nan() && expected.is_nan();
                assert!(close || same, "{value}, not {expected}");
            }
        }
    }
}

#[test]
fn rows_that_do_not_see_a_page_keep_what_they_have() {
    let tokens = |rows: Range<usize>| {
        let mut sum = vec![0.0; STRIDE];
        let mut max = vec![f32::NEG_INFINITY; STRIDE];
        let mut o = vec![0.0; HEAD_DIM * STRIDE];
        Arch::new().dispatch(PageStep {
            tile: Tile {
                q: &[0.0; HEAD_DIM * STRIDE],
                o: &mut o,
                max: &mut max,
                sum: &mut sum,
                stride: STRIDE,
            },
            scores: &mut [f32::NAN; SCORES],
            k: &[0.0; 64 * HEAD_DIM],
            v: &[1.0; 64 * HEAD_DIM],
            tokens: 9,
            rows,
            mask: None,
            bias: None,
            non_finite: None,
            soft_cap: None,
        });
        assert_eq!(o[..STRIDE], sum, "of equal logits and values 1");
        sum
    };
    for rows in [0..1, 4..8, 7..29, 40..45, 0..ROWS] {
        for (row, sum) in tokens(rows.clone()).into_iter().enumerate() {
            let expected = if rows.contains(&row) { 9.0 } else { 0.0 };
            assert_eq!(sum, expected, "row {row} of {rows:?}");
        }
    }
}
