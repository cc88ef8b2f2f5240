//! The operations between a model's matrix products by their definitions, in f64: what tests and checks compare with.
//! [`attention`]'s and [`scores`]' have files of their own.

pub mod attention;
pub mod scores;

use kernels_gpu::random::{entry_bits, step_seed};

/// `row / sqrt(mean(row^2) + eps) * weight` (Zhang, Sennrich, arXiv 1910.07467, equation 4).
pub fn rms_norm(row: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = 1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt();
    let pairs = row.iter().zip(weight);
    pairs.map(|(x, weight)| f64::from(*x) * scale * f64::from(*weight)).collect()
}

/// `silu(gate) * up` with `silu(x) = x / (1 + e^-x)`.
pub fn silu_mul(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// The logarithms of the row's softmax.
pub fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().map(f64::from).fold(f64::MIN, f64::max);
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    row.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
}

/// Entries by score: highest first, the lower number first where they are equal, NaNs last.
pub fn ranked(scores: &[f64]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    ids.sort_by(|&a, &b| {
        let [x, y] = [a, b].map(|id| scores[id as usize]);
        let numbers = y.partial_cmp(&x);
        numbers.unwrap_or_else(|| x.is_nan().cmp(&y.is_nan())).then(a.cmp(&b))
    });
    ids
}

/// Logits with Gumbel noise times `temperature`, that of step `step` of stream `stream` of `seed`: the highest is a
/// draw from the softmax of `row / temperature`, the next one a draw from what is left (Kool, van Hoof, Welling, arXiv
/// 1903.06059).
pub fn with_noise(row: &[f32], temperature: f32, seed: u64, stream: u32, step: u32) -> Vec<f64> {
    let seed = step_seed(seed, stream, step);
    let scores = row.iter().enumerate().map(|(entry, x)| {
        let v = (f64::from(entry_bits(seed, entry as u32)) + 0.5) / 2.0_f64.powi(32);
        f64::from(*x) - f64::from(temperature) * (-(-v).ln_1p()).ln()
    });
    scores.collect()
}

/// Where each entry of a row lies on the way from 0 to 1 that draws walk: the running sums of the softmax of
/// `row / temperature`.
#[derive(Debug)]
pub struct Drawn {
    running: Vec<f64>,
    temperature: f64,
}

impl Drawn {
    /// Those of `row`.
    pub fn new(row: &[f32], temperature: f32) -> Self {
        let temperature = f64::from(temperature);
        let max = row.iter().copied().map(f64::from).fold(f64::MIN, f64::max);
        let mut sum = 0.0;
        let sums = row.iter().map(|x| {
            sum += ((f64::from(*x) - max) / temperature).exp();
            sum
        });
        let mut running: Vec<f64> = sums.collect();
        running.iter_mut().for_each(|to| *to /= sum);
        Self { running, temperature }
    }

    /// How far from what entry `id` has of the way `at` is, in units of what f32 leaves open; infinite for an entry of no
    /// probability.
    pub fn distance(&self, id: usize, at: f64) -> f64 {
        let before = if id == 0 { 0.0 } else { self.running[id - 1] };
        let to = self.running.get(id).copied().unwrap_or(before);
        if to <= before {
            return f64::INFINITY;
        }
        // Logits are rounded before they are divided by the temperature.
        let unit = 4e-6 * (1.0 / self.temperature).max(1.0);
        (before - at).max(at - to).max(0.0) / unit
    }
}
