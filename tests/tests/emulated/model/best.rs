//! The best continuations of many rows together.

use deft_tests::reference::log_softmax;
use device::emulator::{Launch, Memory};
use kernels_gpu::model::limits::{
    BEST_RESULTS, BEST_ROWS_SHARED_BYTES, BEST_SEGMENT, BEST_SHARED_BYTES, BEST_STATE_WORDS,
    BEST_THREADS, BestDigits, TOP_K_THREADS,
};
use kernels_gpu::model::{self, BestRows, BestState};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::uniform;

/// Blocks of what walks over keys: fewer than keys need, so that some walk.
const BLOCKS: u32 = 3;

/// What is chosen of `[scores, vocab]` logits: row, entry and log-probability, in any order.
fn best(logits: &[f32], scores: &[f32], vocab: u32, k: u32, seed: u64) -> Vec<(u32, u32, f32)> {
    let rows = scores.len() as u32;
    let segments = rows * vocab.div_ceil(BEST_SEGMENT);
    let (segment, entry) = (BestDigits::of(segments), BestDigits::of(rows * vocab));
    let mut memory = Memory::new();
    let logits = memory.constant("logits", logits);
    let scores = memory.constant("scores", scores);
    let totals = memory.unwritten::<f32>("totals", 2 * rows as usize);
    let keys = memory.unwritten::<u64>("keys", segments as usize);
    let state = memory.unwritten::<u32>("state", BEST_STATE_WORDS as usize);
    let most = k.min(segments) * BEST_SEGMENT;
    let candidates = memory.unwritten::<u64>("candidates", most as usize);
    let entries = memory.unwritten::<u32>("entries", k as usize);
    let log_probs = memory.unwritten::<f32>("log_probs", k as usize);
    let of_rows = || BestRows {
        logits: logits.as_ptr(),
        scores: scores.as_ptr(),
        totals: totals.as_mut_ptr(),
        vocab,
        segment_bits: segment.bits,
        entry_bits: entry.bits,
    };
    let at = |digits: BestDigits, first: u32, digit: u32| BestState {
        words: state.as_mut_ptr(),
        digit: first + digit,
        first,
        shift: digits.shift(digit),
        width: digits.width(digit),
        width_before: digit.checked_sub(1).map_or(0, |before| digits.width(before)),
    };
    Launch::new([rows, 1, 1], TOP_K_THREADS)
        .shared_bytes(BEST_ROWS_SHARED_BYTES)
        .seed(seed)
        .run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe { model::best_rows(of_rows(), keys.as_mut_ptr(), state.as_mut_ptr()) };
        })
        .unwrap();
    let walk =
        || Launch::new([BLOCKS, 1, 1], BEST_THREADS).shared_bytes(BEST_SHARED_BYTES).seed(seed);
    // Of fewer segments than that all are collected.
    let first = if k > segments { 0 } else { segment.count() };
    for digit in 0..first {
        walk()
            .run(&mut memory, || {
                let state = at(segment, 0, digit);
                // SAFETY: the emulator checks every access.
                unsafe { model::best_count(keys.as_ptr(), segments, k, state) };
            })
            .unwrap();
    }
    walk()
        .run(&mut memory, || {
            let state = at(segment, 0, first);
            // SAFETY: the emulator checks every access.
            unsafe {
                model::best_collect(
                    of_rows(),
                    keys.as_ptr(),
                    segments,
                    state,
                    candidates.as_mut_ptr(),
                );
            };
        })
        .unwrap();
    for digit in 0..entry.count() {
        walk()
            .run(&mut memory, || {
                let state = at(entry, first, digit);
                // SAFETY: the emulator checks every access.
                unsafe { model::best_count(candidates.as_ptr(), 0, k, state) };
            })
            .unwrap();
    }
    walk()
        .run(&mut memory, || {
            let state = at(entry, first, entry.count());
            let (entries, log_probs) = (entries.as_mut_ptr(), log_probs.as_mut_ptr());
            // SAFETY: the emulator checks every access.
            unsafe { model::best_emit(of_rows(), candidates.as_ptr(), state, entries, log_probs) };
        })
        .unwrap();
    let found = memory.read(state).unwrap()[BEST_RESULTS as usize] as usize;
    let entries = memory.read_poisoned(entries);
    let log_probs = memory.read_poisoned(log_probs);
    let found = entries.iter().zip(&log_probs).take(found);
    found.map(|(&entry, &log_prob)| (entry / vocab, entry % vocab, log_prob)).collect()
}

/// Logits with ties and entries that cannot be.
fn logits(rng: &mut SmallRng, count: usize) -> Vec<f32> {
    let mut logits = uniform(rng, count, 9.0);
    for (i, value) in logits.iter_mut().enumerate() {
        match i % 11 {
            7 => *value = f32::NEG_INFINITY,
            i if i % 3 == 0 => *value = value.round(),
            _ => {}
        }
    }
    logits
}

#[test]
fn what_is_chosen_is_the_best_of_all_rows() {
    let mut rng = SmallRng::seed_from_u64(1);
    let shapes = [
        (1, 1, 1),
        (1, 40, 100),
        (3, 5, 4),
        (2, 513, 7),
        (17, 700, 40),
        (5, 1537, 900),
        (37, 65, 300),
    ];
    for (rows, vocab, k) in shapes {
        let logits = logits(&mut rng, rows * vocab);
        let mut scores: Vec<f32> = (0..rows).map(|_| -rng.random_range(0.0..3.0f32)).collect();
        if rows > 2 {
            scores[1] = f32::NEG_INFINITY;
        }
        let mut found = best(&logits, &scores, vocab as u32, k as u32, 1);
        let values = logits.chunks(vocab).zip(&scores).map(|(row, &score)| {
            let softmax = log_softmax(row);
            softmax.into_iter().map(|x| x + f64::from(score)).collect::<Vec<f64>>()
        });
        let values = values.collect::<Vec<_>>().concat();
        let there = values.iter().filter(|&&value| value > f64::NEG_INFINITY).count();
        let context = format!("{rows} rows of {vocab}, {k}");
        assert_eq!(found.len(), k.min(there), "{context}");
        let mut left = values.clone();
        let mut least = f64::INFINITY;
        for &(row, entry, log_prob) in &found {
            let at = row as usize * vocab + entry as usize;
            let value = std::mem::replace(&mut left[at], f64::NEG_INFINITY);
            least = least.min(value);
            let right = values[at] - f64::from(scores[row as usize]);
            assert!(
                (f64::from(log_prob) - right).abs() < 2e-5,
                "{context}: {log_prob} for {right}"
            );
        }
        let missed = left.into_iter().fold(f64::NEG_INFINITY, f64::max);
        assert!(missed <= least + 4e-5 || found.len() < k, "{context}: {missed} and not {least}");
        let mut again = best(&logits, &scores, vocab as u32, k as u32, 2);
        for list in [&mut found, &mut again] {
            list.sort_by_key(|one| (one.0, one.1));
        }
        assert_eq!(found, again, "{context}");
    }
}

#[test]
fn of_equal_ones_the_lower_rows_and_entries_are_chosen() {
    let mut rng = SmallRng::seed_from_u64(2);
    // All rows are alike, and have few values.
    let vocab = 1100;
    let row: Vec<f32> = (0..vocab).map(|_| f32::from(rng.random_range(-2..3i8))).collect();
    let rows = 5;
    let mut order: Vec<(u32, u32)> =
        (0..rows).flat_map(|row| (0..vocab as u32).map(move |entry| (row, entry))).collect();
    order.sort_by(|a, b| row[b.1 as usize].total_cmp(&row[a.1 as usize]).then(a.cmp(b)));
    for k in [1, 64, 700, 3000] {
        let found = best(&row.repeat(rows as usize), &[-1.5; 5], vocab as u32, k as u32, 3);
        let mut found: Vec<(u32, u32)> = found.iter().map(|one| (one.0, one.1)).collect();
        let mut right = order[..k].to_vec();
        found.sort_unstable();
        right.sort_unstable();
        assert_eq!(found, right, "{k}");
    }
}

#[test]
fn rows_without_a_softmax_take_no_part() {
    let (nan, inf, none) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let rows = [[1.0, nan, 2.0], [1.0, inf, 2.0], [none; 3], [0.0, none, 1.0]];
    let mut found = best(rows.as_flattened(), &[0.0; 4], 3, 5, 0);
    found.sort_by_key(|one| one.1);
    let ids: Vec<_> = found.iter().map(|one| (one.0, one.1)).collect();
    assert_eq!(ids, [(3, 0), (3, 2)]);
}

#[test]
fn keys_have_digits_enough() {
    for count in [1, 2, 3, 2047, 2048, 2049, 5_000 * 297, 5_000 * 151_936, u32::MAX] {
        let digits = BestDigits::of(count);
        assert!(u64::from(count) <= 1 << digits.bits);
        let widths = (0..digits.count()).map(|digit| digits.width(digit));
        assert_eq!(widths.sum::<u32>(), 32 + digits.bits);
        assert_eq!(digits.shift(digits.count() - 1), 0);
        for digit in 1..digits.count() {
            assert_eq!(digits.shift(digit - 1) - digits.shift(digit), digits.width(digit));
        }
    }
}
