//! One problem on the CPU backend.

use std::time::Instant;

use anyhow::Result;
use deft::attention::{Attend, Backend, Counters, cpu};
use deft::cache::{DType, Elements, ElementsMut};
use deft::plan::{Grouping, Plan, PlanConfig};

use crate::compare::{Outputs, UNWRITTEN};
use crate::gpu::Repeats;
use crate::stats::Spread;
use crate::tensors::{Heads, HostPool};

#[derive(Debug)]
pub(crate) struct CpuSession {
    backend: Box<dyn Backend>,
    heads: Heads,
    pub(crate) lengths: Vec<u32>,
    q: Vec<u16>,
    outputs: Outputs,
}

impl CpuSession {
    /// Brings `pool` and queries `q` to the backend.
    pub(crate) fn new(pool: &HostPool, q: &[u16]) -> Result<Self> {
        let heads = pool.heads;
        let mut backend = cpu::new(heads.shape(pool.pages()))?;
        for page in 0..pool.pages() {
            let (targets, k, v) = pool.page_rows(page);
            let (k, v) = (elements(heads.dtype, &k), elements(heads.dtype, &v));
            backend.append(0, &targets, Counters::default(), k, v)?;
        }
        Ok(Self {
            backend,
            heads,
            lengths: Vec::new(),
            outputs: Outputs {
                out: vec![UNWRITTEN; q.len()],
                lse: vec![f32::NAN; q.len() / heads.head_dim as usize],
            },
            q: q.to_vec(),
        })
    }

    pub(crate) fn plan_config(&self, grouping: Grouping) -> PlanConfig {
        self.backend.plan_config(grouping, self.heads.group)
    }

    pub(crate) fn attend(&mut self, plan: &Plan) -> Result<Outputs> {
        self.outputs.out.fill(UNWRITTEN);
        self.outputs.lse.fill(f32::NAN);
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
        let dtype = self.heads.dtype;
        let rows = (plan.queries() * self.heads.q_heads()) as usize;
        let elements_of = rows * self.heads.head_dim as usize;
        self.backend.attend(Attend {
            layer: 0,
            plan,
            counters: Counters {
                lengths: &self.lengths,
                tail_pages: &[],
            },
            q: elements(dtype, &self.q[..elements_of]),
            out: elements_mut(dtype, &mut self.outputs.out[..elements_of]),
            lse: Some(&mut self.outputs.lse[..rows]),
            params: self.heads.params,
        })?;
        Ok(())
    }
}

/// 16-bit patterns as a backend takes them.
pub(crate) fn elements(dtype: DType, bits: &[u16]) -> Elements<'_> {
    match dtype {
        DType::F16 => Elements::F16(bytemuck::cast_slice(bits)),
        _ => Elements::Bf16(bytemuck::cast_slice(bits)),
    }
}

/// As [`elements`], to be written.
pub(crate) fn elements_mut(dtype: DType, bits: &mut [u16]) -> ElementsMut<'_> {
    match dtype {
        DType::F16 => ElementsMut::F16(bytemuck::cast_slice_mut(bits)),
        _ => ElementsMut::Bf16(bytemuck::cast_slice_mut(bits)),
    }
}
