//! Tokens through all layers.

use deft::{Batch, CacheError, Kv};

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
    /// Runs the batch's tokens, `tokens[i]` in row `i`. `logits` becomes the rows wanted.
    pub(super) fn forward(
        &mut self,
        tokens: &[u32],
        batch: &Batch,
        wanted: Wanted,
        logits: &mut Vec<f32>,
    ) -> Result<(), CacheError> {
        self.start(tokens);
        for layer in 0..self.config.layers {
            self.attend(layer, batch)?;
            self.feed_forward(layer);
        }
        self.finish(wanted, logits);
        Ok(())
    }

    /// Embeds the tokens.
    fn start(&mut self, tokens: &[u32]) {
        let (scratch, config, n) = (&mut self.scratch, &self.config, tokens.len());
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
    }

    fn attend(&mut self, index: u32, batch: &Batch) -> Result<(), CacheError> {
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
        self.rotary.rotate(batch.positions(), &mut scratch.q)?;
        let (cache, table) = (&mut self.cache, &self.rotary);
        let kv = Kv::new(&scratch.k, &scratch.v).rotated(table);
        cache.append(index, batch, kv)?;
        cache.attend(index, batch, &scratch.q, &mut scratch.attended)?;
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
