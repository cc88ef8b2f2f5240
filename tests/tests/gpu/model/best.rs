//! The best continuations of many rows together.

use deft_engine::cuda::ops::{BestOfRows, ModelOps};
use deft_tests::gpu::Gpu;
use deft_tests::inputs::normals;
use deft_tests::reference::log_softmax;
use kernels_gpu::model::limits::{BEST_RESULTS, BEST_STATE_WORDS};
use rand::RngExt;
use rand::rngs::SmallRng;

use super::ops::{Case, Verdict};

const LOG_PROB_ERROR: f64 = 4e-5;

pub(super) fn cases<'a>(gpu: &'a Gpu, ops: &'a ModelOps) -> Vec<Case<'a>> {
    let shapes = [(1, 1000, 70), (37, 33_003, 10_000), (128, 49_152, 256), (40, 151_936, 900)];
    let case = |(rows, vocab, k)| -> Case<'a> {
        let name = format!("best_of_rows {rows} rows of {vocab}, the best {k}");
        (name, Box::new(move |random| best(gpu, ops, (rows, vocab), k, random)))
    };
    shapes.map(case).into()
}

/// Rows of which the second takes no part and the third has no softmax.
fn best(
    gpu: &Gpu,
    ops: &ModelOps,
    (rows, vocab): (usize, usize),
    k: usize,
    random: &mut SmallRng,
) -> Verdict {
    let mut logits: Vec<f32> = normals(random.random(), rows * vocab, 4.0);
    for value in logits.iter_mut().skip(5).step_by(11) {
        *value = f32::NEG_INFINITY;
    }
    let mut scores: Vec<f32> = (0..rows).map(|_| -random.random_range(0.0..2.0f32)).collect();
    if rows > 2 {
        scores[1] = f32::NEG_INFINITY;
        logits[2 * vocab + 1] = f32::NAN;
    }
    let (count, width, most) = (rows as u32, vocab as u32, k as u32);
    let (device_logits, device_scores) = (gpu.upload(&logits), gpu.upload(&scores));
    let totals = gpu.unwritten::<f32>(2 * rows);
    let keys = gpu.unwritten::<u64>(BestOfRows::segments(count, width) as usize);
    let state = gpu.unwritten::<u32>(BEST_STATE_WORDS as usize);
    let candidates = gpu.unwritten::<u64>(BestOfRows::candidates(count, width, most) as usize);
    let (entries, log_probs) = (gpu.unwritten::<u32>(k), gpu.unwritten::<f32>(k));
    let launch = BestOfRows {
        logits: device_logits.pointer(),
        scores: device_scores.pointer(),
        totals: totals.pointer(),
        keys: keys.pointer(),
        state: state.pointer(),
        candidates: candidates.pointer(),
        entries: entries.pointer(),
        log_probs: log_probs.pointer(),
        rows: count,
        vocab: width,
        k: most,
    };
    let run = || {
        // SAFETY: buffers of the documented shapes, the device's stream.
        unsafe { ops.best_of_rows(&launch, gpu.stream.raw()) }.unwrap();
        let found = gpu.download(&state)[BEST_RESULTS as usize] as usize;
        let (entries, log_probs) = (gpu.download(&entries), gpu.download(&log_probs));
        let found = entries.into_iter().zip(log_probs).take(found);
        let mut found: Vec<(u32, f32)> = found.collect();
        found.sort_by_key(|one| one.0);
        found
    };
    let (found, again) = (run(), run());
    let mut verdict = Verdict::default();
    verdict.require(found == again, || "a second run chose others".to_owned());
    verdict.require(found.len() == k, || format!("{} of {k} were chosen", found.len()));
    let mut values = vec![f64::NEG_INFINITY; rows * vocab];
    for (row, score) in scores.iter().enumerate().filter(|&(row, _)| rows <= 2 || row != 2) {
        let softmax = log_softmax(&logits[row * vocab..][..vocab]);
        for (value, log_prob) in values[row * vocab..].iter_mut().zip(softmax) {
            *value = log_prob + f64::from(*score);
        }
    }
    let mut least = f64::INFINITY;
    for &(entry, log_prob) in &found {
        let value = std::mem::replace(&mut values[entry as usize], f64::NEG_INFINITY);
        least = least.min(value);
        let right = value - f64::from(scores[entry as usize / vocab]);
        verdict.compare(log_prob.into(), right, LOG_PROB_ERROR, || format!("entry {entry}"));
    }
    let missed = values.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let near = missed <= least + 2.0 * LOG_PROB_ERROR;
    verdict.require(near, || format!("{missed} was left out, {least} was not"));
    verdict
}
