//! One problem on the CPU backend.

use std::time::Instant;

use anyhow::Result;
use deft::attention::{Attend, AttentionParams, Backend, Counters, cpu};
use deft::cache::KvElement;
use deft::plan::{Grouping, HeadShape, Plan, PlanConfig};
use deft_tests::inputs::Inputs;
use deft_tests::oracle::Outputs;

use crate::gpu::Repeats;
use crate::stats::Spread;

#[derive(Debug)]
pub(crate) struct CpuSession<T> {
    backend: Box<dyn Backend>,
    heads: HeadShape,
    params: AttentionParams,
    pub(crate) lengths: Vec<u32>,
    q: Vec<T>,
    outputs: Outputs<T>,
}

impl<T: KvElement> CpuSession<T> {
    /// Brings K, V and queries to the backend.
    pub(crate) fn new(inputs: &Inputs<T>) -> Result<Self> {
        let mut backend = cpu::new(inputs.shape(1))?;
        inputs.store(&mut *backend, 0);
        let rows = inputs.q.len() / inputs.heads.head_dim as usize;
        Ok(Self {
            backend,
            heads: inputs.heads,
            params: inputs.params,
            lengths: Vec::new(),
            outputs: Outputs::unwritten(rows, inputs.heads.head_dim),
            q: inputs.q.clone(),
        })
    }

    pub(crate) fn plan_config(&self, grouping: Grouping) -> PlanConfig {
        self.backend.plan_config(grouping, self.heads.group_size())
    }

    pub(crate) fn attend(&mut self, plan: &Plan) -> Result<Outputs<T>> {
        let rows = self.outputs.lse.len();
        self.outputs = Outputs::unwritten(rows, self.heads.head_dim);
        self.run(plan)?;
        Ok(self.outputs.clone())
    }

    pub(crate) fn time(&mut self, plan: &Plan, repeats: Repeats) -> Result<Spread> {
        let mut samples = Vec::with_capacity(repeats.measured);
        for round in 0..repeats.warmup + repeats.measured {
            let begin = Instant::now();
            self.run(plan)?;
            if round >= repeats.warmup {
                samples.push(begin.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(Spread::of(samples))
    }

    /// Attention over `plan`, whose queries are the first of those there are.
    pub(crate) fn run(&mut self, plan: &Plan) -> Result<()> {
        let rows = (plan.queries() * self.heads.q_heads) as usize;
        let elements_of = rows * self.heads.head_dim as usize;
        self.backend.attend(Attend {
            layer: 0,
            plan,
            counters: Counters {
                lengths: &self.lengths,
                tail_pages: &[],
                directory: None,
                residues: None,
            },
            q: T::elements(&self.q[..elements_of]),
            out: T::elements_mut(&mut self.outputs.out[..elements_of]),
            lse: Some(f32::elements_mut(&mut self.outputs.lse[..rows])),
            params: self.params,
        })?;
        Ok(())
    }
}
