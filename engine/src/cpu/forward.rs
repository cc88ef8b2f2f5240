//! Tokens through all layers.

use deft::{CacheError, TreePlan};

use super::CpuModel;
use super::matmul::Onto;
use super::ops::{rms_norm, silu_mul};
use super::params::Layer;

/// Which rows of logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Last,
    None,
}

/// Memory for the states of a pass, kept from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    positions: Vec<u32>,
    /// `[n, hidden]`: the residual stream.
    x: Vec<f32>,
    /// `[n, hidden]`: `x`, normed.
    normed: Vec<f32>,
    /// `[n, q_heads, head_dim]`.
    q: Vec<f32>,
    /// `[n, kv_heads, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n, q_heads, head_dim]`.
    attended: Vec<f32>,
    /// `[n, ffn]`.
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Scratch {
    /// The last layer's queries, `[n, q_heads, head_dim]`.
    pub(super) fn queries(&self) -> &[f32] {
        &self.q
    }
}

impl CpuModel {
    /// Runs the last token of each of the plan's leaves: `tokens[i]` is that of leaf `i`. `logits` becomes
    /// the rows wanted.
    pub(super) fn forward(
        &mut self,
        tokens: &[u32],
        plan: &TreePlan,
        wanted: Wanted,
        logits: &mut Vec<f32>,
    ) -> Result<(), CacheError> {
        self.start(tokens, plan)?;
        for layer in 0..self.config.layers {
            self.attend(layer, plan)?;
            self.feed_forward(layer);
        }
        self.finish(wanted, logits);
        Ok(())
    }

    /// Embeds the tokens and finds their positions.
    fn start(&mut self, tokens: &[u32], plan: &TreePlan) -> Result<(), CacheError> {
        let (scratch, config, n) = (&mut self.scratch, &self.config, tokens.len());
        scratch.positions.clear();
        for &leaf in plan.leaves() {
            let tokens = self.cache.forest().context_length(leaf)?;
            // Paths were checked against the context, which fits.
            scratch.positions.push(tokens as u32 - 1);
        }
        scratch.x.clear();
        for &token in tokens {
            let row = self.params.embedding.row(token as usize);
            scratch.x.extend_from_slice(row);
        }
        for (buffer, width) in [
            (&mut scratch.normed, config.hidden),
            (&mut scratch.q, config.q_width()),
            (&mut scratch.k, config.kv_width()),
            (&mut scratch.v, config.kv_width()),
            (&mut scratch.attended, config.q_width()),
            (&mut scratch.gate, config.ffn),
            (&mut scratch.up, config.ffn),
        ] {
            buffer.resize(n * width as usize, 0.0);
        }
        Ok(())
    }

    fn attend(&mut self, index: u32, plan: &TreePlan) -> Result<(), CacheError> {
        let scratch = &mut self.scratch;
        let layer: &Layer = &self.params.layers[index as usize];
        let (gain, epsilon) = (&layer.attention_norm, self.config.rms_eps);
        rms_norm(&scratch.x, gain, epsilon, &mut scratch.normed);
        for (matrix, out) in [
            (&layer.query, &mut scratch.q),
            (&layer.key, &mut scratch.k),
            (&layer.value, &mut scratch.v),
        ] {
            matrix.apply(&scratch.normed, out, Onto::Replace);
        }
        self.rotary.rotate(&scratch.positions, &mut scratch.q)?;
        let (cache, table) = (&mut self.cache, &self.rotary);
        cache.append_rotated(index, plan, &scratch.k, &scratch.v, table)?;
        cache.attend(index, plan, &scratch.q, &mut scratch.attended)?;
        let output = &layer.output;
        output.apply(&scratch.attended, &mut scratch.x, Onto::Add);
        Ok(())
    }

    fn feed_forward(&mut self, index: u32) {
        let scratch = &mut self.scratch;
        let layer = &self.params.layers[index as usize];
        let (gain, epsilon) = (&layer.ffn_norm, self.config.rms_eps);
        rms_norm(&scratch.x, gain, epsilon, &mut scratch.normed);
        let normed = &scratch.normed;
        layer.gate.apply(normed, &mut scratch.gate, Onto::Replace);
        layer.up.apply(normed, &mut scratch.up, Onto::Replace);
        silu_mul(&mut scratch.gate, &scratch.up);
        layer.down.apply(&scratch.gate, &mut scratch.x, Onto::Add);
    }

    fn finish(&mut self, wanted: Wanted, logits: &mut Vec<f32>) {
        let scratch = &mut self.scratch;
        let width = self.config.hidden as usize;
        let first = match wanted {
            Wanted::All => 0,
            Wanted::Last => scratch.x.len() - width,
            Wanted::None => return,
        };
        let (x, normed) = (&scratch.x[first..], &mut scratch.normed[first..]);
        let (gain, epsilon) = (&self.params.final_norm, self.config.rms_eps);
        rms_norm(x, gain, epsilon, normed);
        let head = self.params.head();
        logits.resize(x.len() / width * head.rows(), 0.0);
        head.apply(normed, logits, Onto::Replace);
    }
}
