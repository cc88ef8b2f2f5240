//! What is left of rows that were folded away: linear attention beside the softmax.
//!
//! LESS (Get more with LESS, [arXiv 2402.09398](https://arxiv.org/abs/2402.09398), section 3.2) keeps of rows that are dropped
//! `H = sum of psi(k)^T v` and `z = sum of psi(k)`. A query adds `phi(q) H` to the numerator of its softmax and `phi(q) z` to the
//! denominator. That is one more partial result: `o = phi(q) H / phi(q) z` with `LSE = ln(phi(q) z)`. Sums over disjoint
//! rows add, so each node has its own.

use std::sync::Arc;

/// How queries and keys become features, none of which is negative. Attention's weight of a key is then taken to be
/// `phi(q) . psi(k)` where it would be `exp(logit)`.
pub trait FeatureMap: std::fmt::Debug + Send + Sync {
    /// Number of features.
    fn rank(&self) -> usize;

    /// `phi` of a query of one query head, as attention is given it: `[head_dim]` to `[rank]`. `layer` counts layers with
    /// keys of their own.
    fn phi(&self, layer: u32, q_head: u32, q: &[f32], features: &mut [f32]);

    /// `psi` of a key of one KV head, as it lies in the cache: `[head_dim]` to `[rank]`.
    fn psi(&self, layer: u32, kv_head: u32, k: &[f32], features: &mut [f32]);
}

/// What was folded, of one layer and KV head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Residue {
    /// `[rank, head_dim]`; empty where nothing was folded.
    pub h: Vec<f32>,
    /// `[rank]`; empty where nothing was folded.
    pub z: Vec<f32>,
}

impl Residue {
    /// The least that `phi(q) z` is taken to be.
    pub const LEAST: f32 = 1e-6;

    /// Adds a row that has `features`, and counts `weight` times.
    pub fn fold(&mut self, features: &[f32], v: &[f32], weight: f32) {
        if self.z.is_empty() {
            self.z.resize(features.len(), 0.0);
            self.h.resize(features.len() * v.len(), 0.0);
        }
        for ((z, h), feature) in
            self.z.iter_mut().zip(self.h.chunks_exact_mut(v.len())).zip(features)
        {
            let feature = feature * weight;
            *z += feature;
            h.iter_mut().zip(v).for_each(|(h, v)| *h += feature * v);
        }
    }

    /// Adds what was folded of other rows.
    pub fn add(&mut self, other: &Self) {
        if self.z.is_empty() {
            self.clone_from(other);
            return;
        }
        for (sum, more) in [(&mut self.z, &other.z), (&mut self.h, &other.h)] {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }

    /// What a query of `features` gets of it: the partial result in `o`, `[head_dim]`, and its LSE, a natural logarithm;
    /// zeros and -inf where nothing was folded.
    pub fn attend(&self, features: &[f32], o: &mut [f32]) -> f32 {
        o.fill(0.0);
        if self.z.is_empty() {
            return f32::NEG_INFINITY;
        }
        let sum: f32 = features.iter().zip(&self.z).map(|(feature, z)| feature * z).sum();
        let sum = sum.max(Self::LEAST);
        for (feature, h) in features.iter().zip(self.h.chunks_exact(o.len())) {
            o.iter_mut().zip(h).for_each(|(o, h)| *o += feature / sum * h);
        }
        sum.ln()
    }
}

/// The residues of a forest's nodes, and the feature map that they are made by.
#[derive(Clone, Debug)]
pub struct Residues {
    map: Arc<dyn FeatureMap>,
    /// By number, of each node that has one `[layers, kv_heads]`; empty for a number that is free.
    entries: Vec<Vec<Residue>>,
    free: Vec<u32>,
}

impl Residues {
    /// None yet.
    pub fn new(map: Arc<dyn FeatureMap>) -> Self {
        Self { map, entries: Vec::new(), free: Vec::new() }
    }

    /// How features are made.
    pub fn map(&self) -> &Arc<dyn FeatureMap> {
        &self.map
    }

    /// Numbers that there have been.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no node ever had a residue.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether no node has one now.
    pub(crate) fn is_unused(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Those of the node that has number `index`: `[layers, kv_heads]`.
    ///
    /// # Panics
    /// If there never was such a number.
    pub fn of(&self, index: u32) -> &[Residue] {
        &self.entries[index as usize]
    }

    /// Enters a node's residues; their number.
    pub(crate) fn insert(&mut self, heads: Vec<Residue>) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = heads;
                index
            }
            None => {
                self.entries.push(heads);
                self.entries.len() as u32 - 1
            }
        }
    }

    /// Takes a node's residues out.
    pub(crate) fn remove(&mut self, index: u32) -> Vec<Residue> {
        self.free.push(index);
        std::mem::take(&mut self.entries[index as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_folded_adds_up_and_weighs_as_by_hand() {
        let mut whole = Residue::default();
        assert_eq!(whole.attend(&[1.0], &mut [7.0, 7.0]), f32::NEG_INFINITY);
        whole.fold(&[1.0, 0.5], &[2.0, 4.0], 1.0);
        whole.fold(&[0.0, 1.0], &[1.0, 0.0], 2.0);
        assert_eq!(whole.z, [1.0, 2.5]);
        assert_eq!(whole.h, [2.0, 4.0, 3.0, 2.0]);
        let mut o = [7.0; 2];
        let lse = whole.attend(&[2.0, 2.0], &mut o);
        assert!((lse - 7.0_f32.ln()).abs() < 1e-6);
        assert!((o[0] - 10.0 / 7.0).abs() < 1e-6 && (o[1] - 12.0 / 7.0).abs() < 1e-6);
        // A query that sees nothing of it.
        assert_eq!(whole.attend(&[0.0, 0.0], &mut o), Residue::LEAST.ln());
        assert_eq!(o, [0.0; 2]);
    }
}
