//! Sampling: probabilities, limits, and random numbers.

use deft_search::Sampler;
use deft_search::sampler::{leaf_stream, log_sum_exp, most_likely};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn row(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-6.0..6.0)).collect()
}

/// Probabilities by the definition: sort everything, cut, cut, normalise.
fn reference(sampler: Sampler, logits: &[f32]) -> Vec<f64> {
    let weight = |i: usize| (f64::from(logits[i]) / f64::from(sampler.temperature)).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampler.top_k > 0 {
        order.truncate(sampler.top_k);
    }
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for i in order {
        if sum >= f64::from(sampler.top_p) * total && sampler.top_p < 1.0 {
            break;
        }
        sum += weight(i);
        kept.push(i);
    }
    let mut probabilities = vec![0.0; logits.len()];
    for &i in &kept {
        probabilities[i] = weight(i) / sum;
    }
    probabilities
}

#[test]
fn choices_have_the_probabilities_of_the_definition() {
    for (seed, n) in [(1, 1), (2, 2), (3, 17), (4, 1000)] {
        let logits = row(seed, n);
        for temperature in [0.3, 1.0, 2.5] {
            for top_k in [0, 1, 5, 2000] {
                for top_p in [0.05, 0.5, 0.9, 1.0] {
                    let sampler = Sampler { temperature, top_k, top_p };
                    let mut got = vec![0.0; n];
                    for (token, probability) in sampler.choices(&logits).unwrap().probabilities() {
                        got[token as usize] = probability;
                    }
                    for (got, want) in got.iter().zip(reference(sampler, &logits)) {
                        assert!((got - want).abs() < 1e-12, "{sampler:?}: {got} for {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let logits = row(5, 12);
    let sampler = Sampler { temperature: 1.5, top_k: 8, top_p: 0.95 };
    let choices = sampler.choices(&logits).unwrap();
    let mut rng = leaf_stream(9, &[1, 2]);
    let draws = 100_000;
    let mut counts = [0u32; 12];
    for _ in 0..draws {
        counts[choices.draw(&mut rng) as usize] += 1;
    }
    for (count, p) in counts.into_iter().zip(reference(sampler, &logits)) {
        let deviation = (p * (1.0 - p) / f64::from(draws)).sqrt();
        let share = f64::from(count) / f64::from(draws);
        assert!((share - p).abs() <= 5.0 * deviation, "{share} for {p}");
    }
}

#[test]
fn temperature_0_takes_the_first_of_the_most_likely() {
    let mut rng = leaf_stream(0, &[]);
    for (logits, best) in [(vec![1.0, 3.0, 3.0, 2.0], 1), (vec![f32::NEG_INFINITY, -5.0], 1)] {
        assert_eq!(Sampler::GREEDY.choices(&logits).unwrap().draw(&mut rng), best);
        assert_eq!(most_likely(&logits, 1), [best]);
    }
}

#[test]
fn tokens_of_probability_0_are_never_drawn() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    let mut rng = leaf_stream(1, &[]);
    let choices = Sampler::at(1.0).choices(&logits).unwrap();
    assert!((0..1000).all(|_| choices.draw(&mut rng) == 1));
}

#[test]
fn log_softmax_is_right_where_exponentials_overflow() {
    let exact = (1.0f64.exp() + 1.0 + (-1.0f64).exp()).ln();
    for shift in [-1e4f32, 0.0, 1e4] {
        let got = log_sum_exp(&[shift + 1.0, shift, shift - 1.0]);
        assert!((got - f64::from(shift) - exact).abs() < 1e-9, "{got} at {shift}");
    }
    let many = vec![0.5; 50_000];
    assert!((log_sum_exp(&many) - 0.5 - 50_000f64.ln()).abs() < 1e-9);
    for bad in [vec![f32::NAN, 1.0], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY, 0.0]] {
        assert!(!log_sum_exp(&bad).is_finite());
    }
}

#[test]
fn the_most_likely_tokens_come_in_order() {
    let logits = row(6, 300);
    let mut order: Vec<u32> = (0..300).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    for k in [1, 2, 7, 299, 300, 301] {
        assert_eq!(most_likely(&logits, k), order[..k.min(300)]);
    }
}

#[test]
fn leaves_have_random_numbers_of_their_own() {
    let first = |seed, path: &[u32]| leaf_stream(seed, path).random::<u64>();
    assert_eq!(first(1, &[0, 1]), first(1, &[0, 1]));
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..4 {
        for path in [&[][..], &[0], &[1], &[0, 0], &[0, 1], &[1, 0], &[0, 0, 0]] {
            assert!(seen.insert(first(seed, path)), "seed {seed}, path {path:?}");
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let message = |sampler: Sampler| sampler.check().unwrap_err().to_string();
    assert_eq!(message(Sampler::at(-1.0)), "temperature is -1; it must be 0 or more, and finite");
    for top_p in [0.0, 1.5, f32::NAN] {
        let sampler = Sampler { top_p, ..Sampler::at(1.0) };
        assert!(message(sampler).ends_with("it must be above 0 and at most 1"));
    }
    assert!(Sampler::at(f32::INFINITY).check().is_err());
}

#[test]
fn logits_without_a_largest_one_are_refused() {
    for logits in
        [vec![], vec![f32::NAN, 1.0], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY, 0.0]]
    {
        for sampler in [Sampler::GREEDY, Sampler::at(1.0)] {
            let error = sampler.choices(&logits).unwrap_err().to_string();
            let expected = format!(
                "logits is {} values without a largest one; it must be numbers, at least one of them finite",
                logits.len()
            );
            assert_eq!(error, expected);
        }
    }
}
