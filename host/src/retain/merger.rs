//! KVMerger (arXiv 2407.08454).

use std::ops::Range;

use super::{HeadCompaction, HeadView, Observe, Retention, Source};
use crate::attention::Reduce;

/// Makes one row of each run of tokens whose keys are similar. From the last row to the first, a row joins the one after
/// it while the cosine of their keys is above a threshold. The row of the largest score is the pivot; the others are weighted by
/// how near their keys are to its, `exp(-|k - k_pivot|^2 / (2 sigma^2))`, weights that sum to 1. The newest tokens and those of
/// the largest scores stay by themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merger {
    /// Cosine above which neighbours are merged; the paper has 0.75. 1 merges nothing.
    pub threshold: f32,
    /// Newest tokens that stay by themselves.
    pub recent: u32,
    /// The part of a node's rows that stay by themselves for their scores.
    pub top: f32,
    /// Width of the weights, in units of a key's length; the paper finds 5 best.
    pub sigma: f32,
    /// How a merged row makes up for those that are gone.
    pub bias: MergeBias,
    /// Of a prompt's queries the last so many count for scores.
    pub window: u32,
}

/// How a row stands for the `n` rows that it was made of. One for `n` loses attention's weight: `n` equal keys have `n`
/// times the weight of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MergeBias {
    /// `log n` is added to its logit, which is exact for equal keys. Rows that were merged before count as often as they stand for.
    #[default]
    LogN,
    /// Not at all.
    Plain,
    /// Its value is multiplied by `n`, as KVMerger has it.
    ScaleValues,
}

impl Retention for Merger {
    fn observe(&self) -> Option<Observe> {
        Some(Observe { reduce: Reduce::Sum, window: self.window })
    }

    fn needs_keys(&self) -> bool {
        true
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        let alone = self.alone(head);
        let mut sets: Vec<Range<usize>> = Vec::new();
        for row in (0..head.rows()).rev() {
            match sets.last_mut() {
                Some(set) if !alone[row] && !alone[row + 1] && self.similar(head, row) => {
                    set.start = row;
                }
                _ => sets.push(row..row + 1),
            }
        }
        let mut compaction = HeadCompaction::default();
        for set in sets.into_iter().rev() {
            match set.len() {
                1 => compaction.push_kept(set.start as u32, head.biases[set.start]),
                _ => self.merge(head, set, &mut compaction),
            }
        }
        compaction
    }
}

impl Merger {
    /// Whether a row's key is like the next one's. The cosine of equal keys may be rounded above 1.
    fn similar(&self, head: &HeadView<'_>, row: usize) -> bool {
        self.threshold < 1.0 && cosine(head, row) > self.threshold
    }

    /// Which rows stay by themselves.
    fn alone(&self, head: &HeadView<'_>) -> Vec<bool> {
        let mut alone: Vec<bool> =
            (0..head.rows()).map(|row| head.is_recent(row, self.recent)).collect();
        let mut order: Vec<usize> = (0..head.rows()).collect();
        order.sort_by(|&a, &b| head.score(b).total_cmp(&head.score(a)).then(b.cmp(&a)));
        let top = (self.top * head.rows() as f32) as usize;
        order.into_iter().take(top).for_each(|row| alone[row] = true);
        alone
    }

    fn merge(&self, head: &HeadView<'_>, set: Range<usize>, compaction: &mut HeadCompaction) {
        // Of equal ones the last.
        let largest = |&a: &usize, &b: &usize| head.score(a).total_cmp(&head.score(b));
        let pivot = set.clone().max_by(largest).unwrap_or(set.start);
        let votes = |row: usize| match self.bias {
            MergeBias::LogN => head.biases[row].exp(),
            MergeBias::Plain | MergeBias::ScaleValues => 1.0,
        };
        let weight = |row: usize| {
            let pairs = key(head, row).iter().zip(key(head, pivot));
            let distance: f32 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
            votes(row) * (-distance / (2.0 * self.sigma * self.sigma)).exp()
        };
        let total: f32 = set.clone().map(weight).sum();
        let count: f32 = set.clone().map(votes).sum();
        let value = if self.bias == MergeBias::ScaleValues { count } else { 1.0 };
        let source = |row: usize| {
            let k = weight(row) / total;
            Source { row: row as u32, k, v: k * value }
        };
        let others = set.filter(|&row| row != pivot);
        let sources: Vec<Source> = std::iter::once(pivot).chain(others).map(source).collect();
        let bias = if self.bias == MergeBias::LogN { count.ln() } else { 0.0 };
        compaction.push(&sources, bias);
    }
}

fn key<'a>(head: &HeadView<'a>, row: usize) -> &'a [f32] {
    let dims = head.keys.len() / head.rows();
    &head.keys[row * dims..][..dims]
}

/// The cosine of a row's key and the next one's; NaN, which is above nothing, where one is zero.
fn cosine(head: &HeadView<'_>, row: usize) -> f32 {
    let (a, b) = (key(head, row), key(head, row + 1));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
