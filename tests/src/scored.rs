//! The score pass of a backend against its definition.

use std::collections::HashMap;

use deft::attention::{Backend, Counters, Reduce, Score};
use deft::cache::KvElement;
use deft::plan::Plan;
use kernels_gpu::abi::PAGE_TOKENS;

use crate::oracle::reference_params;
use crate::problem::Problem;
use crate::reference::attention::{logit, visible_tokens};
use crate::reference::scores::TokenScore;

/// All ways to reduce.
pub const REDUCES: [Reduce; 3] = [Reduce::Last, Reduce::Sum, Reduce::Max];

/// `(page, token of the page, KV head)`
type Place = (u32, u32, u32);

impl<T: KvElement> Problem<T> {
    /// How many tokens each row sees; 0 for those that `left_out` names.
    pub fn visible(&self, left_out: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut visible = vec![0; self.view.queries as usize];
        for query in 0..self.view.queries {
            let row = self.view.query_order[query as usize];
            if !left_out(row) {
                visible[row as usize] = visible_tokens(&self.view, query).len() as u32;
            }
        }
        visible
    }

    /// What the queries make of every token that one of them sees, by the LSE given.
    pub fn token_scores(&self, lse: &[f32], visible: &[u32]) -> HashMap<Place, TokenScore> {
        let inputs = &self.inputs;
        let heads = inputs.heads;
        let params = reference_params(heads, &inputs.params);
        let (group, dims) = (heads.group_size(), heads.head_dim as usize);
        let mut scores: HashMap<Place, TokenScore> = HashMap::new();
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for query in 0..self.view.queries {
            let row = self.view.query_order[query as usize];
            for (page, token) in visible_tokens(&self.view, query) {
                for kv_head in 0..heads.kv_heads {
                    k.clear();
                    v.clear();
                    inputs.read((page, token), kv_head, &mut k, &mut v);
                    let score = scores.entry((page, token, kv_head)).or_default();
                    for member in 0..group {
                        let head = (row * heads.q_heads + kv_head * group + member) as usize;
                        let q = inputs.q[head * dims..][..dims].iter();
                        let q: Vec<f64> = q.map(|x| f64::from(x.to_f32())).collect();
                        let logit = logit(&params, &q, &k);
                        score.take(logit, lse[head].into(), visible[row as usize]);
                    }
                }
            }
        }
        scores
    }

    /// Attends on `backend`, scores with the LSE that it gave, and compares all planes: of tokens that were seen with the
    /// definition, of all others with 0. Planes are cleared before.
    ///
    /// # Panics
    /// If it refuses, or gives something else.
    pub fn check_scores(
        &self,
        backend: &mut dyn Backend,
        layer: u32,
        plan: &Plan,
        visible: &[u32],
        context: &str,
    ) {
        let lse = self.attend(backend, layer, plan).lse;
        let right = self.token_scores(&lse, visible);
        let shape = *backend.shape();
        let pages: Vec<u32> = (0..shape.pages).collect();
        for reduce in REDUCES {
            backend.clear_scores(&pages).unwrap();
            let call = Score {
                layer,
                plan,
                counters: Counters { lengths: &self.lengths, ..Counters::default() },
                q: T::elements(&self.inputs.q),
                lse: f32::elements(&lse),
                visible,
                reduce,
                params: self.inputs.params,
            };
            backend.score(call).unwrap();
            let cells: Vec<u32> = (0..shape.pages * shape.kv_heads).collect();
            let mut scores = vec![u32::MAX; cells.len() * PAGE_TOKENS as usize];
            backend.read_scores(layer, &cells, &mut scores).unwrap();
            for (at, &bits) in (0..).zip(&scores) {
                let (cell, token) = (at / PAGE_TOKENS, at % PAGE_TOKENS);
                let place = (cell / shape.kv_heads, token, cell % shape.kv_heads);
                let right = right.get(&place).copied().unwrap_or_default();
                assert!(
                    right.agrees(reduce, bits, 2e-4),
                    "{context}: {reduce:?} of (page, token, KV head) {place:?} is {bits} ({}), not {right:?}",
                    f32::from_bits(bits)
                );
            }
        }
    }
}
