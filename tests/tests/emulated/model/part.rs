//! Rankings of a row whose logits lie on several devices.

use deft_tests::reference::{log_softmax, ranked, with_noise};
use device::emulator::{Launch, Memory};
use kernels_gpu::model::limits::{
    MERGE_TOP_K_THREADS, TOP_K_SHARED_BYTES, TOP_K_THREADS, part_words,
};
use kernels_gpu::model::{self, MergeTopK, Sampling, TopKPart};
use kernels_gpu::random::settings;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::uniform;

const SEED: u64 = 0xfeed_0123_4567_89ab;

/// What a device finds of its entries, `[rows, entries]` from `first` on.
fn find(
    logits: &[f32],
    (first, entries): (usize, usize),
    k: usize,
    noise: Option<f32>,
) -> Vec<u32> {
    let rows = logits.len() / entries;
    let mut memory = Memory::new();
    let logits = memory.constant("logits", logits);
    let found = memory.unwritten::<u32>("found", rows * part_words(k as u32) as usize);
    let numbers: Vec<u32> = (0..rows as u32).collect();
    let streams = memory.constant("streams", &numbers);
    let steps = memory.constant("steps", &numbers);
    let settings = memory.constant("settings", &settings(SEED, noise.unwrap_or(0.0)));
    Launch::new([rows as u32, 1, 1], TOP_K_THREADS)
        .shared_bytes(TOP_K_SHARED_BYTES)
        .seed(1)
        .run(&mut memory, || {
            let part = TopKPart {
                logits: logits.as_ptr(),
                found: found.as_mut_ptr(),
                entries: entries as u32,
                first: first as u32,
                k: k as u32,
            };
            let sampling = Sampling {
                streams: streams.as_ptr(),
                steps: steps.as_ptr(),
                settings: settings.as_ptr(),
            };
            // SAFETY: the emulator checks every access.
            unsafe {
                match noise {
                    None => model::top_k_part(part),
                    Some(_) => model::sample_part(part, sampling),
                }
            }
        })
        .unwrap();
    memory.read(found).unwrap()
}

/// Ids and log-probabilities, `[rows, k]`, of rows of `vocab` logits that lie on `parts` devices.
fn rank(
    logits: &[f32],
    vocab: usize,
    parts: usize,
    k: usize,
    noise: Option<f32>,
) -> (Vec<u32>, Vec<f32>) {
    let at = |part: usize| vocab * part / parts;
    let of = |part: usize| {
        let own = at(part)..at(part + 1);
        let rows = logits.chunks_exact(vocab).flat_map(|row| row[own.clone()].to_vec());
        find(&rows.collect::<Vec<_>>(), (own.start, own.len()), k, noise)
    };
    let rows = logits.len() / vocab;
    let mut memory = Memory::new();
    let found = memory.constant("found", &(0..parts).flat_map(of).collect::<Vec<_>>());
    let ids = memory.unwritten::<u32>("ids", rows * k);
    let log_probs = memory.unwritten::<f32>("log_probs", rows * k);
    Launch::new([rows as u32, 1, 1], MERGE_TOP_K_THREADS)
        .seed(2)
        .run(&mut memory, || {
            let merge = MergeTopK {
                found: found.as_ptr(),
                ids: ids.as_mut_ptr(),
                log_probs: log_probs.as_mut_ptr(),
                parts: parts as u32,
                rows: rows as u32,
                k: k as u32,
            };
            // SAFETY: the emulator checks every access.
            unsafe { model::merge_top_k(merge) }
        })
        .unwrap();
    (memory.read(ids).unwrap(), memory.read(log_probs).unwrap())
}

fn assert_log_probs(row: &[f32], ids: &[u32], found: &[f32]) {
    let expected = log_softmax(row);
    for (id, found) in ids.iter().zip(found) {
        let expected = expected[*id as usize];
        let same = f64::from(*found) == expected;
        assert!(same || (f64::from(*found) - expected).abs() <= 2e-5, "{id}: {found} {expected}");
    }
}

#[test]
fn parts_of_any_number_give_the_row_s_ranking_with_the_lower_of_equal_ids_first() {
    let mut rng = SmallRng::seed_from_u64(11);
    // Parts of whole chunks and of others, and parts with fewer entries than are asked for.
    for (rows, vocab, k) in [(2, 1001, 7), (1, 8200, 9), (1, 70, 64), (2, 1000, 1), (1, 9, 9)] {
        let mut logits = uniform(&mut rng, rows * vocab, 20.0);
        for (i, value) in logits.iter_mut().enumerate() {
            // Ties within a part and between parts, and entries that cannot be.
            if i % 2 == 0 {
                *value = (*value / 8.0).round();
            }
            if i % 11 == 7 {
                *value = f32::NEG_INFINITY;
            }
        }
        for parts in [1, 3, 4, 8] {
            let (ids, log_probs) = rank(&logits, vocab, parts, k, None);
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                let scores: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let (ids, log_probs) = (&ids[i * k..][..k], &log_probs[i * k..][..k]);
                assert_eq!(ids, &ranked(&scores)[..k], "vocab {vocab}, k {k}, {parts} parts");
                assert_log_probs(row, ids, log_probs);
            }
        }
    }
}

#[test]
fn a_row_that_is_equal_everywhere_is_ranked_by_id_on_any_number_of_parts() {
    let zeros: Vec<f32> = (0..2000).map(|i| [-0.0, 0.0][i % 2]).collect();
    for parts in [2, 3, 40] {
        let (ids, log_probs) = rank(&zeros, 2000, parts, 7, None);
        assert!(ids.into_iter().eq(0..7), "{parts} parts");
        assert_log_probs(&zeros, &[0], &log_probs[..1]);
    }
}

#[test]
fn parts_draw_what_the_whole_row_does() {
    let mut rng = SmallRng::seed_from_u64(12);
    for (vocab, k) in [(1001, 7), (4096, 1)] {
        let rows = 3;
        let logits = uniform(&mut rng, rows * vocab, 8.0);
        let whole = rank(&logits, vocab, 1, k, Some(0.9));
        for parts in [2, 3, 8] {
            let (ids, log_probs) = rank(&logits, vocab, parts, k, Some(0.9));
            assert_eq!(ids, whole.0, "{parts} parts");
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                let scores = with_noise(row, 0.9, SEED, i as u32, i as u32);
                let lost = scores[ranked(&scores)[0] as usize] - scores[ids[i * k] as usize];
                assert!(lost.abs() < 1e-5, "lost {lost}");
                assert_log_probs(row, &ids[i * k..][..k], &log_probs[i * k..][..k]);
            }
        }
        assert_eq!(rank(&logits, vocab, 3, k, Some(0.0)).0, rank(&logits, vocab, 1, k, None).0);
    }
}

#[test]
fn a_part_without_numbers_or_without_any_possible_entry_leaves_the_others_ranking() {
    let (nan, no) = (f32::NAN, f32::NEG_INFINITY);
    let mut rows = vec![no; 2 * 40];
    rows[7] = 1.0;
    rows[33] = 2.0;
    rows[40..].fill(1.5);
    rows[40..60].fill(nan);
    let (ids, log_probs) = rank(&rows, 40, 4, 3, None);
    assert_eq!(ids, [33, 7, 0, 20, 21, 22]);
    assert_log_probs(&rows[..40], &ids[..3], &log_probs[..3]);
    assert!(log_probs[3..].iter().all(|log_prob| log_prob.is_nan()), "{log_probs:?}");
}
