//! Two models' predictions of one text.

use deft::FormatBytes;
use deft::retain::Compaction;
use serde::{Deserialize, Serialize};

/// How alike predictions are, means over the tokens of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Likeness {
    /// Kullback-Leibler divergence of the full model's distribution to the other's, in nats.
    pub(crate) kl: f64,
    /// How often both have the same likeliest token.
    pub(crate) top1: f64,
    /// By how much the text's tokens are less likely, in nats.
    pub(crate) nll: f64,
}

impl Likeness {
    /// Compares `full` with `other`, both `[tokens, vocabulary]`; `next` are the tokens that came.
    pub(crate) fn of(full: &[f32], other: &[f32], vocabulary: usize, next: &[u32]) -> Self {
        let rows = full.chunks_exact(vocabulary).zip(other.chunks_exact(vocabulary));
        let mut sum = Self::default();
        for ((full, other), &token) in rows.zip(next) {
            let [p, q] = [full, other].map(log_softmax);
            let kl = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
            sum.kl += kl.sum::<f64>();
            sum.top1 += f64::from(u8::from(likeliest(full) == likeliest(other)));
            sum.nll += p[token as usize] - q[token as usize];
        }
        let tokens = next.len() as f64;
        Self { kl: sum.kl / tokens, top1: sum.top1 / tokens, nll: sum.nll / tokens }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|&logit| f64::from(logit) - f64::from(most));
    let sum: f64 = shifted.clone().map(f64::exp).sum();
    shifted.map(|logit| logit - sum.ln()).collect()
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let order = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a));
    (0..logits.len()).max_by(order)
}

/// One format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) kv: String,
    pub(crate) prefix: usize,
    pub(crate) scored: usize,
    /// Bytes of the prompts' pages, and what as many native ones take.
    pub(crate) bytes: u64,
    pub(crate) native_bytes: u64,
    /// By text.
    pub(crate) kl: Vec<f64>,
    pub(crate) top1: Vec<f64>,
    pub(crate) nll: Vec<f64>,
    /// Of a policy the part of the prompt's rows that it keeps, by text: the mean over layers and KV heads, the least and the most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kept: Vec<[f64; 3]>,
}

impl Row {
    pub(super) fn new(kv: String, prefix: usize, scored: usize) -> Self {
        Self {
            kv,
            prefix,
            scored,
            bytes: 0,
            native_bytes: 0,
            kl: Vec::new(),
            top1: Vec::new(),
            nll: Vec::new(),
            kept: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, text: Likeness) {
        self.kl.push(text.kl);
        self.top1.push(text.top1);
        self.nll.push(text.nll);
    }

    /// Adds what a policy has kept of a prompt of `rows` rows.
    pub(super) fn add_kept(&mut self, chosen: &Compaction, rows: usize) {
        let parts = chosen.heads.iter().map(|head| head.rows.len() as f64 / rows as f64);
        let mean = parts.clone().sum::<f64>() / chosen.heads.len() as f64;
        let ends = [f64::min, f64::max].map(|end| parts.clone().reduce(end).unwrap_or(mean));
        self.kept.push([mean, ends[0], ends[1]]);
    }

    /// Adds what a cache holds in other formats than the native one, which is first and holds a page at least.
    pub(super) fn add_bytes(&mut self, used: &[FormatBytes]) {
        let page = used[0].bytes / u64::from(used[0].pages.max(1));
        for used in &used[1..] {
            self.bytes += used.bytes;
            self.native_bytes += page * u64::from(used.pages);
        }
    }

    pub(super) fn header() -> String {
        format!("{:<28} {:>7} {:>18} {:>16} {:>18}  kept", "kv", "bytes", "KL", "top-1", "dNLL")
    }

    pub(super) fn line(&self) -> String {
        let list = |numbers: &[f64], digits: usize| {
            let numbers = numbers.iter().map(|number| format!("{number:.digits$}"));
            numbers.collect::<Vec<_>>().join(" / ")
        };
        let means: Vec<f64> = self.kept.iter().map(|kept| kept[0]).collect();
        format!(
            "{:<28} {:>6.3}x {:>18} {:>16} {:>18}  {}",
            self.kv,
            self.bytes as f64 / self.native_bytes.max(1) as f64,
            list(&self.kl, 4),
            list(&self.top1, 3),
            list(&self.nll, 4),
            list(&means, 3)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_like_itself() {
        let logits = [1.0, 2.0, -3.0, 0.5, 0.5, 9.0];
        let same = Likeness::of(&logits, &logits, 3, &[0, 2]);
        assert_eq!((same.kl, same.top1, same.nll), (0.0, 1.0, 0.0));
    }

    #[test]
    fn two_distributions_are_compared_as_by_hand() {
        // 3/4 and 1/4, against 1/2 and 1/2; and the other way round, of which the likeliest differs.
        let three = 3f32.ln();
        let found = Likeness::of(&[three, 0.0, 0.0, three], &[0.0; 4], 2, &[0, 0]);
        let kl = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((found.kl - kl).abs() < 1e-7, "{found:?}");
        assert_eq!(found.top1, 0.5);
        let nll = 0.5 * (1.5f64.ln() + 0.5f64.ln());
        assert!((found.nll - nll).abs() < 1e-7, "{found:?}");
    }
}
