//! Tokens that rows of logits are asked for: drawn by a number, or given.

use deft_tests::reference::{Drawn, log_softmax};
use device::emulator::{Launch, Memory};
use kernels_gpu::model::limits::{PICK_SHARED_BYTES, TOP_K_THREADS};
use kernels_gpu::model::{self, Pick};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::uniform;

/// What a row is asked.
enum Asked {
    /// Numbers, and the temperature.
    Draws(Vec<f32>, f32),
    Tokens(Vec<u32>),
}

/// Ids and log-probabilities of all asks, by the kernel; each entry of `asked` has a row of `logits`.
fn pick(logits: &[f32], asked: &[(u32, Asked)], vocab: usize, seed: u64) -> (Vec<u32>, Vec<f32>) {
    let (mut rows, mut asks) = (Vec::new(), Vec::<u32>::new());
    for (row, asked) in asked {
        let first = asks.len() as u32;
        let scale = match asked {
            Asked::Draws(at, temperature) => {
                asks.extend(at.iter().map(|at| at.to_bits()));
                1.0 / temperature
            }
            Asked::Tokens(tokens) => {
                asks.extend(tokens);
                0.0
            }
        };
        rows.extend([*row, first, asks.len() as u32 - first, scale.to_bits()]);
    }
    let mut memory = Memory::new();
    let logits = memory.constant("logits", logits);
    let rows = memory.constant("rows", &rows);
    let ids = memory.unwritten::<u32>("ids", asks.len());
    let log_probs = memory.unwritten::<f32>("log_probs", asks.len());
    let asks = memory.constant("asks", &asks);
    Launch::new([asked.len() as u32, 1, 1], TOP_K_THREADS)
        .shared_bytes(PICK_SHARED_BYTES)
        .seed(seed)
        .run(&mut memory, || {
            let pick = Pick {
                logits: logits.as_ptr(),
                rows: rows.as_ptr(),
                asks: asks.as_ptr(),
                ids: ids.as_mut_ptr(),
                log_probs: log_probs.as_mut_ptr(),
                vocab: vocab as u32,
            };
            // SAFETY: the emulator checks every access.
            unsafe { model::pick_tokens(pick) };
        })
        .unwrap();
    (memory.read(ids).unwrap(), memory.read(log_probs).unwrap())
}

/// Logits with ties and entries that cannot be.
fn logits(rng: &mut SmallRng, count: usize) -> Vec<f32> {
    let mut logits = uniform(rng, count, 9.0);
    for (i, value) in logits.iter_mut().enumerate() {
        if i % 3 == 0 {
            *value = value.round();
        }
        if i % 11 == 7 {
            *value = f32::NEG_INFINITY;
        }
    }
    logits
}

#[test]
fn a_draw_is_where_the_running_probability_passes_its_number() {
    let mut rng = SmallRng::seed_from_u64(1);
    for (vocab, temperature) in
        [(1, 1.0), (5, 0.7), (127, 1.0), (4097, 0.8), (4097, 0.01), (33_003, 2.0), (40_000, 1.0)]
    {
        let rows = 2;
        let logits = logits(&mut rng, rows * vocab);
        // More numbers than warps, the ends of the range too.
        let mut at: Vec<f32> = (0..40).map(|_| rng.random()).collect();
        at.extend([0.0, 1.0 - f32::EPSILON / 2.0]);
        let asked: Vec<_> = (0..rows as u32)
            .rev()
            .map(|row| (row, Asked::Draws(at.clone(), temperature)))
            .collect();
        let (ids, log_probs) = pick(&logits, &asked, vocab, 1);
        let answers: Vec<_> = ids.iter().zip(&log_probs).collect();
        for (&(row, _), answers) in asked.iter().zip(answers.chunks(at.len())) {
            let row = &logits[row as usize * vocab..][..vocab];
            let drawn = Drawn::new(row, temperature);
            let softmax = log_softmax(row);
            for (&at, &(&id, &log_prob)) in at.iter().zip(answers) {
                let id = id as usize;
                let far = drawn.distance(id, at.into());
                assert!(far <= 1.0, "vocab {vocab}: {id} for {at} is {far} off");
                assert!((f64::from(log_prob) - softmax[id]).abs() < 2e-5);
            }
        }
        assert_eq!((ids, log_probs), pick(&logits, &asked, vocab, 2));
    }
}

#[test]
fn given_tokens_have_their_log_softmax_beside_rows_that_draw() {
    let mut rng = SmallRng::seed_from_u64(2);
    let vocab = 1001;
    let logits = logits(&mut rng, 3 * vocab);
    let tokens: Vec<u32> = (0..1500).map(|i| i * 7 % vocab as u32).collect();
    let asked = [
        (2, Asked::Tokens(tokens.clone())),
        (0, Asked::Draws(vec![0.5], 1.0)),
        (1, Asked::Tokens(vec![])),
    ];
    let (ids, log_probs) = pick(&logits, &asked, vocab, 3);
    assert_eq!(ids[..tokens.len()], tokens);
    let softmax = log_softmax(&logits[2 * vocab..]);
    for (token, found) in tokens.iter().zip(&log_probs) {
        let expected = softmax[*token as usize];
        let same = f64::from(*found) == expected;
        assert!(same || (f64::from(*found) - expected).abs() < 2e-5, "{found} for {expected}");
    }
    assert!(Drawn::new(&logits[..vocab], 1.0).distance(ids[1500] as usize, 0.5) <= 1.0);
}

#[test]
fn rows_without_a_softmax_answer_with_nan_and_a_token_that_there_is() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [
        [1.0, nan, 2.0, f32::NEG_INFINITY, 2.0],
        [1.0, inf, 2.0, 0.0, 3.0],
        [f32::NEG_INFINITY; 5],
    ];
    let draws = || Asked::Draws(vec![0.0, 0.5, 0.99], 0.8);
    let asked = [(0, draws()), (1, draws()), (2, draws()), (0, Asked::Tokens(vec![0, 1, 4]))];
    let (ids, log_probs) = pick(rows.as_flattened(), &asked, 5, 0);
    assert!(ids.iter().all(|&id| id < 5), "{ids:?}");
    assert!(log_probs.iter().all(|x| x.is_nan()), "{log_probs:?}");
}
