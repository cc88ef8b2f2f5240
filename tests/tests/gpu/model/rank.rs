//! Ranking and sampling of logits.

use deft_engine::cuda::ops::{ModelOps, Sampling, TopK};
use deft_engine::random::settings;
use deft_tests::reference::{log_softmax, ranked, with_noise};

use deft_tests::forests::pick;
use deft_tests::gpu::Gpu;
use deft_tests::inputs::normals;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::ops::{Case, Verdict};

/// Scores that differ by less may change places: what f32 and the device's logarithm leave of the noise.
const SCORE_ERROR: f64 = 4e-5;
const LOG_PROB_ERROR: f64 = 4e-5;

/// Temperature, streams and steps of rows that are sampled.
type Noise<'a> = (f32, &'a [u32], &'a [u32]);

/// Ids and log-probabilities.
type Choice = (Vec<u32>, Vec<f32>);

pub(super) fn cases<'a>(gpu: &'a Gpu, ops: &'a ModelOps) -> Vec<Case<'a>> {
    let mut cases: Vec<Case<'a>> = Vec::new();
    for vocab in [1000, 33_003, 49_152, 128_256] {
        for k in [1, 7, 64] {
            cases.push((
                format!("log_softmax_top_k vocab {vocab} k {k}"),
                Box::new(move |random| rank(gpu, ops, vocab, k, random)),
            ));
            cases.push((
                format!("sample_top_k vocab {vocab} k {k}"),
                Box::new(move |random| sample(gpu, ops, vocab, k, random)),
            ));
        }
    }
    cases
}

fn launch(
    gpu: &Gpu,
    ops: &ModelOps,
    logits: &[f32],
    (vocab, k): (usize, usize),
    noise: Option<(u64, Noise<'_>)>,
) -> Choice {
    let rows = logits.len() / vocab;
    let logits = gpu.upload(logits);
    let ids = gpu.unwritten::<u32>(rows * k);
    let log_probs = gpu.unwritten::<f32>(rows * k);
    let top_k = TopK {
        logits: logits.pointer(),
        ids: ids.pointer(),
        log_probs: log_probs.pointer(),
        rows: rows as u32,
        vocab: vocab as u32,
        k: k as u32,
    };
    let (streams, steps) = noise.map_or((&[][..], &[][..]), |(_, (_, a, b))| (a, b));
    let (streams, steps) = (gpu.upload(streams), gpu.upload(steps));
    let settings = noise.map(|(seed, (temperature, ..))| settings(seed, temperature));
    let settings = gpu.upload(&settings.unwrap_or_default());
    // SAFETY: buffers of the documented shapes, the device's stream.
    unsafe {
        match noise {
            None => ops.log_softmax_top_k(&top_k, gpu.stream.raw()).unwrap(),
            Some(_) => {
                let sampling = Sampling {
                    streams: streams.pointer(),
                    steps: steps.pointer(),
                    settings: settings.pointer(),
                };
                ops.sample_top_k(&top_k, &sampling, gpu.stream.raw()).unwrap();
            }
        }
    }
    (gpu.download(&ids), gpu.download(&log_probs))
}

/// Rows of logits with ties, impossible entries and, in one of several, a NaN.
fn logits(random: &mut SmallRng, vocab: usize) -> Vec<f32> {
    let rows = pick(random, &[1, 3, 17]);
    let mut logits: Vec<f32> = normals(random.random(), rows * vocab, 4.0);
    for value in logits.iter_mut().step_by(3) {
        *value = value.round();
    }
    for value in logits.iter_mut().skip(5).step_by(11) {
        *value = f32::NEG_INFINITY;
    }
    if rows > 1 {
        logits[vocab + 1] = f32::NAN;
    }
    logits
}

fn rank(gpu: &Gpu, ops: &ModelOps, vocab: usize, k: usize, random: &mut SmallRng) -> Verdict {
    let logits = logits(random, vocab);
    let choice = launch(gpu, ops, &logits, (vocab, k), None);
    let mut verdict = Verdict::default();
    for (i, row) in logits.chunks_exact(vocab).enumerate() {
        let scores: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let (ids, log_probs) = (&choice.0[i * k..][..k], &choice.1[i * k..][..k]);
        verdict.require(ids == &ranked(&scores)[..k], || format!("row {i} is ranked {ids:?}"));
        compare_log_probs(&mut verdict, row, ids, log_probs);
    }
    let greedy = vec![0; logits.len() / vocab];
    let again = launch(gpu, ops, &logits, (vocab, k), Some((1, (0.0, &greedy, &greedy))));
    verdict
        .require(bits(&again) == bits(&choice), || "temperature 0 is not the ranking".to_owned());
    verdict
}

fn sample(gpu: &Gpu, ops: &ModelOps, vocab: usize, k: usize, random: &mut SmallRng) -> Verdict {
    let logits = logits(random, vocab);
    let rows = logits.len() / vocab;
    let seed = random.random();
    let mut words = || -> Vec<u32> { (0..rows).map(|_| random.random()).collect() };
    let (streams, steps) = (words(), words());
    let temperature = 0.9;
    let noise = Some((seed, (temperature, &streams[..], &steps[..])));
    let choice = launch(gpu, ops, &logits, (vocab, k), noise);
    let mut verdict = Verdict::default();
    for (i, row) in logits.chunks_exact(vocab).enumerate() {
        let (ids, log_probs) = (&choice.0[i * k..][..k], &choice.1[i * k..][..k]);
        let scores = with_noise(row, temperature, seed, streams[i], steps[i]);
        for (place, (id, right)) in ids.iter().zip(ranked(&scores)).enumerate() {
            let found = scores.get(*id as usize).copied().unwrap_or(f64::NAN);
            verdict.compare(found, scores[right as usize], SCORE_ERROR, || {
                format!("score of draw {place} of row {i}")
            });
        }
        let mut distinct = ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        verdict.require(distinct.len() == k, || format!("row {i} has an entry drawn twice"));
        compare_log_probs(&mut verdict, row, ids, log_probs);
    }
    let again = launch(gpu, ops, &logits, (vocab, k), noise);
    verdict.require(bits(&again) == bits(&choice), || "a second run drew otherwise".to_owned());
    verdict
}

fn compare_log_probs(verdict: &mut Verdict, row: &[f32], ids: &[u32], log_probs: &[f32]) {
    let expected = log_softmax(row);
    for (id, found) in ids.iter().zip(log_probs) {
        let expected = expected.get(*id as usize).copied();
        let expected = expected.unwrap_or(f64::INFINITY);
        verdict.compare((*found).into(), expected, LOG_PROB_ERROR, || {
            format!("log-probability of entry {id}")
        });
    }
}

/// Bits, for NaN is not equal to itself.
fn bits(choice: &Choice) -> (&[u32], Vec<u32>) {
    let log_probs = choice.1.iter().map(|x| x.to_bits());
    (&choice.0, log_probs.collect())
}
