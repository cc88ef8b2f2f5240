//! Ranking and sampling of logits.

use deft_tests::reference::{log_softmax, ranked, with_noise};
use device::emulator::{Launch, Memory};
use kernels_gpu::model::limits::{TOP_K_SHARED_BYTES, TOP_K_THREADS};
use kernels_gpu::model::{self, Sampling, TopK};
use kernels_gpu::random::settings;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::uniform;

/// How rows are sampled: temperature, streams, steps.
type Noise<'a> = (f32, &'a [u32], &'a [u32]);

const SEED: u64 = 0xfeed_0123_4567_89ab;

/// Ids and log-probabilities, `[rows, k]`, by the kernel.
fn rank(
    logits: &[f32],
    vocab: usize,
    k: usize,
    noise: Option<Noise<'_>>,
    schedule: u64,
) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.len() / vocab;
    let mut memory = Memory::new();
    let logits = memory.constant("logits", logits);
    let ids = memory.unwritten::<u32>("ids", rows * k);
    let log_probs = memory.unwritten::<f32>("log_probs", rows * k);
    let noise = noise.map(|(temperature, streams, steps)| {
        let streams = memory.constant("streams", streams);
        let steps = memory.constant("steps", steps);
        let settings = settings(SEED, temperature);
        (streams, steps, memory.constant("settings", &settings))
    });
    Launch::new([rows as u32, 1, 1], TOP_K_THREADS)
        .shared_bytes(TOP_K_SHARED_BYTES)
        .seed(schedule)
        .run(&mut memory, || {
            let top_k = TopK {
                logits: logits.as_ptr(),
                ids: ids.as_mut_ptr(),
                log_probs: log_probs.as_mut_ptr(),
                vocab: vocab as u32,
                k: k as u32,
            };
            // SAFETY: the emulator checks every access.
            unsafe {
                match noise {
                    None => model::log_softmax_top_k(top_k),
                    Some((streams, steps, settings)) => {
                        let sampling = Sampling {
                            streams: streams.as_ptr(),
                            steps: steps.as_ptr(),
                            settings: settings.as_ptr(),
                        };
                        model::sample_top_k(top_k, sampling);
                    }
                }
            }
        })
        .unwrap();
    (memory.read(ids).unwrap(), memory.read(log_probs).unwrap())
}

fn assert_log_probs(row: &[f32], ids: &[u32], found: &[f32]) {
    let expected = log_softmax(row);
    for (id, found) in ids.iter().zip(found) {
        let expected = expected[*id as usize];
        let same = f64::from(*found) == expected;
        let close = (f64::from(*found) - expected).abs() <= 2e-5;
        assert!(same || close, "entry {id}: {found}, expected {expected}");
    }
}

#[test]
fn the_highest_entries_come_in_order_with_their_log_softmax() {
    let mut rng = SmallRng::seed_from_u64(1);
    // Up to three batches of a thread's chunks, whole chunks and not.
    for (rows, vocab, ranks) in [
        (1, 1, &[1][..]),
        (3, 5, &[1, 5]),
        (17, 1000, &[1, 7]),
        (3, 1000, &[2, 64]),
        (2, 4097, &[1, 64]),
        (2, 33_003, &[7]),
        (1, 40_000, &[64]),
    ] {
        for &k in ranks {
            let mut logits = uniform(&mut rng, rows * vocab, 20.0);
            // Ties among the highest, of one thread and of several, and entries that cannot be.
            for (i, value) in logits.iter_mut().enumerate() {
                if i % 3 == 0 {
                    *value = value.round();
                }
                if i % 11 == 7 {
                    *value = f32::NEG_INFINITY;
                }
            }
            let (ids, log_probs) = rank(&logits, vocab, k, None, 1);
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                let scores: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let (ids, log_probs) = (&ids[i * k..][..k], &log_probs[i * k..][..k]);
                assert_eq!(ids, &ranked(&scores)[..k], "vocab {vocab}, k {k}");
                assert_log_probs(row, ids, log_probs);
            }
            assert_eq!((ids, log_probs), rank(&logits, vocab, k, None, 2));
        }
    }
}

#[test]
fn winners_may_all_be_one_threads_or_all_equal() {
    let vocab = 20_000;
    let mut one_thread = vec![0.0; vocab];
    for chunk in 0..4 {
        for entry in 0..4 {
            let at = 4 * (5 + 1024 * chunk) + entry;
            one_thread[at] = ((7 * at) % 13) as f32 + 1.0;
        }
    }
    let scores: Vec<f64> = one_thread.iter().copied().map(f64::from).collect();
    let (ids, _) = rank(&one_thread, vocab, 64, None, 3);
    assert_eq!(ids, ranked(&scores)[..64]);
    // Both zeros are equal.
    let zeros: Vec<f32> = (0..vocab).map(|i| [-0.0, 0.0][i % 2]).collect();
    let (ids, log_probs) = rank(&zeros, vocab, 64, None, 3);
    assert!(ids.into_iter().eq(0..64));
    assert_log_probs(&zeros, &[0], &log_probs[..1]);
}

#[test]
fn what_is_not_a_number_ranks_last_and_leaves_no_softmax() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [
        [nan, 1.0, -nan, f32::NEG_INFINITY, 2.0],
        [1.0, inf, 2.0, 0.0, 3.0],
        [f32::NEG_INFINITY; 5],
    ];
    let (ids, log_probs) = rank(rows.as_flattened(), 5, 5, None, 0);
    assert_eq!(ids, [4, 1, 3, 0, 2, 1, 4, 2, 0, 3, 0, 1, 2, 3, 4]);
    assert!(log_probs.iter().all(|x| x.is_nan()), "{log_probs:?}");
}

#[test]
fn samples_are_the_highest_entries_of_logits_with_gumbel_noise() {
    let mut rng = SmallRng::seed_from_u64(2);
    for (vocab, k, temperature) in [(1000, 1, 1.0), (1000, 7, 0.7), (9001, 64, 1.3), (40, 40, 2.0)]
    {
        let rows = 5;
        let logits = uniform(&mut rng, rows * vocab, 8.0);
        let streams: Vec<u32> = (0..rows as u32).map(|row| 10 * row).collect();
        let steps = [0, 7, 7, 1 << 20, u32::MAX];
        let noise = Some((temperature, &streams[..], &steps[..]));
        let (ids, log_probs) = rank(&logits, vocab, k, noise, 5);
        for (i, row) in logits.chunks_exact(vocab).enumerate() {
            let scores = with_noise(row, temperature, SEED, streams[i], steps[i]);
            let (ids, log_probs) = (&ids[i * k..][..k], &log_probs[i * k..][..k]);
            let right = ranked(&scores);
            for (id, right) in ids.iter().zip(&right) {
                // Not the ids: scores that differ by less than f32 shows may change places.
                let lost = scores[*right as usize] - scores[*id as usize];
                assert!(lost.abs() < 1e-5, "lost {lost}");
            }
            let mut distinct = ids.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), k);
            assert_log_probs(row, ids, log_probs);
        }
    }
}

#[test]
fn the_rarest_noise_decides_by_its_value_and_not_by_rounding() {
    // Of 4,000 entries the one with most noise against one with hardly any, so that 3e-5 are between them.
    let (vocab, margin) = (4000, 3e-5);
    let (mut logits, mut streams, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for stream in 0..8 {
        let noise = with_noise(&vec![0.0; vocab], 1.0, SEED, stream, 0);
        let rarest = ranked(&noise)[0] as usize;
        let common = ranked(&noise)[vocab / 2] as usize;
        for (winner, loser) in [(rarest, common), (common, rarest)] {
            let mut row = vec![-1000.0; vocab];
            row[winner] = -noise[winner] as f32;
            row[loser] = (-noise[loser] - margin) as f32;
            logits.extend(row);
            streams.push(stream);
            expected.push(winner as u32);
        }
    }
    let steps = vec![0; streams.len()];
    let (ids, _) = rank(&logits, vocab, 1, Some((1.0, &streams, &steps)), 0);
    assert_eq!(ids, expected);
}

#[test]
fn temperature_zero_is_the_ranking_without_noise() {
    let mut rng = SmallRng::seed_from_u64(3);
    let logits = uniform(&mut rng, 3 * 5000, 8.0);
    let noise = Some((0.0, &[1, 2, 3][..], &[4, 5, 6][..]));
    assert_eq!(rank(&logits, 5000, 9, noise, 0), rank(&logits, 5000, 9, None, 0));
}

#[test]
fn a_sample_depends_on_stream_and_step_and_not_on_the_row() {
    let mut rng = SmallRng::seed_from_u64(4);
    let row = uniform(&mut rng, 1000, 1.0);
    let logits = row.repeat(6);
    let streams = [3, 4, 3, 3, 4, 5];
    let steps = [9, 9, 9, 8, 9, 9];
    let (ids, _) = rank(&logits, 1000, 1, Some((1.0, &streams, &steps)), 0);
    assert_eq!((ids[0], ids[1]), (ids[2], ids[4]));
    let mut distinct = vec![ids[0], ids[1], ids[3], ids[5]];
    distinct.sort_unstable();
    distinct.dedup();
    // Of 1,000 nearly equal entries four draws that agree would be chance of 1 in 170.
    assert_eq!(distinct.len(), 4);
}

#[test]
fn draws_follow_the_softmax_of_the_logits_over_temperature() {
    let row: Vec<f32> = vec![2.0, 0.0, -1.0, 1.0, -3.0];
    let (temperature, draws) = (0.8, 40_000);
    let scaled: Vec<f32> = row.iter().map(|x| x / temperature).collect();
    let mut counts = [0_u32; 5];
    for draw in 0..draws {
        // Half along streams, half along steps.
        let (stream, step) = if draw % 2 == 0 { (draw, 0) } else { (1, draw) };
        let scores = with_noise(&row, temperature, SEED, stream, step);
        counts[ranked(&scores)[0] as usize] += 1;
    }
    for (count, log_prob) in counts.iter().zip(log_softmax(&scaled)) {
        let expected = log_prob.exp();
        let deviation = (expected * (1.0 - expected) / f64::from(draws)).sqrt();
        let found = f64::from(*count) / f64::from(draws);
        assert!((found - expected).abs() < 4.0 * deviation, "{found}, expected {expected}");
    }
    let noise = random_pairs(8);
    let logits = row.repeat(8);
    let (ids, _) = rank(&logits, 5, 1, Some((temperature, &noise.0, &noise.1)), 0);
    for (i, id) in ids.iter().enumerate() {
        let scores = with_noise(&row, temperature, SEED, noise.0[i], noise.1[i]);
        assert_eq!(*id, ranked(&scores)[0]);
    }
}

/// Streams and steps.
fn random_pairs(count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut words = || (0..count).map(|_| rng.random()).collect();
    (words(), words())
}
