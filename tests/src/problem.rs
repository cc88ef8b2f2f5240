//! Attention problems with a known answer: what CPU, emulator and GPU are all held against.

use deft::attention::{Attend, AttentionParams, Backend, Counters};
use deft::cache::{CacheShape, KvElement};
use deft::plan::{Grouping, HeadShape, Plan};
use deft::tree::TreeView;
use kernels_gpu::abi::TokenMove;

use crate::inputs::Inputs;
use crate::oracle::{Oracle, Outputs, Verdict, sample};

/// Every way to group queries and KV.
pub const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

/// `q` query heads of `dim` elements over `kv` KV heads.
pub const fn heads(q: u32, kv: u32, dim: u32) -> HeadShape {
    HeadShape { q_heads: q, kv_heads: kv, head_dim: dim }
}

/// A view with K, V and queries, and what attention over them gives in f64.
#[derive(Debug)]
pub struct Problem<T> {
    /// Who sees what.
    pub view: TreeView,
    /// K, V and queries.
    pub inputs: Inputs<T>,
    /// Lengths by slot.
    pub lengths: Vec<u32>,
    oracle: Oracle,
}

impl<T: KvElement> Problem<T> {
    /// Random values for `view`, a few of its queries steep, and the answer of every query.
    pub fn new(view: TreeView, heads: HeadShape, params: AttentionParams, seed: u64) -> Self {
        let mut inputs = Inputs::of_view(&view, heads, params, seed);
        inputs.steepen();
        let queries = view.queries;
        Self::of(view, inputs, queries)
    }

    /// Random values for `view`, none steep, and the answer of `checked` of its queries.
    pub fn sampled(
        view: TreeView,
        heads: HeadShape,
        params: AttentionParams,
        seed: u64,
        checked: u32,
    ) -> Self {
        let inputs = Inputs::of_view(&view, heads, params, seed);
        Self::of(view, inputs, checked)
    }

    fn of(view: TreeView, inputs: Inputs<T>, checked: u32) -> Self {
        Self {
            oracle: Oracle::new(&inputs, &view, &sample(view.queries, checked)),
            lengths: lengths(&view),
            view,
            inputs,
        }
    }

    /// The shape of a cache of `layers` that has the problem's pages.
    pub fn shape(&self, layers: u32) -> CacheShape {
        self.inputs.shape(layers)
    }

    /// Writes K and V, the NaNs included, to a layer of `backend`.
    ///
    /// # Panics
    /// If it refuses.
    pub fn store(&self, backend: &mut dyn Backend, layer: u32) {
        self.inputs.store(backend, layer);
    }

    /// Copies tokens' K and V, one move after the other, and answers anew for `checked` queries.
    pub fn move_tokens(&mut self, moves: &[TokenMove], checked: u32) {
        let row = self.inputs.row();
        for step in moves {
            let from = step.from as usize * row;
            for rows in [&mut self.inputs.k, &mut self.inputs.v] {
                rows.copy_within(from..from + row, step.to as usize * row);
            }
        }
        let queries = sample(self.view.queries, checked);
        self.oracle = Oracle::new(&self.inputs, &self.view, &queries);
    }

    /// Answers anew for every query, after K, V or queries have changed.
    pub fn recompute(&mut self) {
        let queries = sample(self.view.queries, self.view.queries);
        self.oracle = Oracle::new(&self.inputs, &self.view, &queries);
    }

    /// Elements of the answer that are NaN or infinite.
    pub fn not_finite(&self) -> usize {
        self.oracle.not_finite()
    }

    /// What `plan` gives on `backend`, written over bits that nothing writes.
    ///
    /// # Panics
    /// If it refuses.
    pub fn attend(&self, backend: &mut dyn Backend, layer: u32, plan: &Plan) -> Outputs<T> {
        let mut outputs = self.unwritten();
        self.attend_into(backend, layer, plan, &mut outputs);
        outputs
    }

    /// The same without asking for LSE.
    ///
    /// # Panics
    /// If it refuses.
    pub fn attend_without_lse(
        &self,
        backend: &mut dyn Backend,
        layer: u32,
        plan: &Plan,
    ) -> Outputs<T> {
        let mut outputs = self.unwritten();
        outputs.lse.clear();
        self.attend_into(backend, layer, plan, &mut outputs);
        outputs
    }

    /// As [`attend`](Self::attend), into `outputs`; without LSE if those have no room for it.
    fn attend_into(
        &self,
        backend: &mut dyn Backend,
        layer: u32,
        plan: &Plan,
        outputs: &mut Outputs<T>,
    ) {
        let call = Attend {
            layer,
            plan,
            counters: Counters {
                lengths: &self.lengths,
                tail_pages: &[],
                directory: None,
                residues: None,
            },
            q: T::elements(&self.inputs.q),
            out: T::elements_mut(&mut outputs.out),
            lse: (!outputs.lse.is_empty()).then(|| f32::elements_mut(&mut outputs.lse)),
            params: self.inputs.params,
        };
        backend.attend(call).unwrap();
    }

    /// Outputs that nothing was written to.
    pub fn unwritten(&self) -> Outputs<T> {
        let dim = self.inputs.heads.head_dim;
        Outputs::unwritten(self.inputs.q.len() / dim as usize, dim)
    }

    /// Compares outputs with the answer.
    pub fn judge(&self, outputs: &Outputs<T>) -> Verdict {
        self.oracle.judge(outputs)
    }

    /// Runs `plan` on `backend` and compares with the answer.
    ///
    /// # Panics
    /// If it refuses, or gives something else.
    pub fn check(&self, backend: &mut dyn Backend, layer: u32, plan: &Plan, context: &str) {
        let verdict = self.judge(&self.attend(backend, layer, plan));
        assert!(verdict.passes(), "{context}: {verdict}");
    }
}

/// Lengths of the live runs of `view`, by slot.
fn lengths(view: &TreeView) -> Vec<u32> {
    let mut lengths = Vec::new();
    for run in &view.runs {
        if let Some(slot) = run.length_slot {
            lengths.resize(lengths.len().max(slot as usize + 1), 0);
            lengths[slot as usize] = run.tokens;
        }
    }
    lengths
}
