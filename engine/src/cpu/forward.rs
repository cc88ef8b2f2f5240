//! Tokens through all layers.

use deft::{Batch, CacheError, Kv, Out};

use super::CpuModel;
use super::matmul::{Matrix, Onto, apply_all};
use super::ops::{add_to_rows, gate_mul, rms_norm, rms_norm_in_place, soft_cap};
use super::params::Layer;
use crate::config::Turn;
use crate::ranks::{Communicator, RankError, best_of_all};
use crate::select::{self, Select, Selected};
use crate::tree_model::ModelError;

/// Which rows of logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// All rows, of this rank's entries.
    Own,
    Last,
    None,
}

/// What is added to the residual stream.
#[derive(Clone, Copy)]
enum From {
    Attention,
    Gate,
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
    /// `[n, q_heads]`: what attention's softmax was divided by, where scores are wanted.
    lse: Vec<f32>,
    /// `[n, ffn]`.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// By layer the queries of all passes since they are recorded; empty if they are not.
    recorded: Vec<Vec<f32>>,
}

impl Scratch {
    /// Adds `post_norm(matrix source)`, summed over ranks, to the residual stream.
    fn add(
        &mut self,
        matrix: &Matrix,
        source: From,
        post_norm: Option<(&Vec<f32>, f32)>,
        ranks: &mut dyn Communicator,
    ) -> Result<(), RankError> {
        let source = match source {
            From::Attention => &self.attended,
            From::Gate => &self.gate,
        };
        let Some((gain, epsilon)) = post_norm else {
            // All have the stream, and one brings it to the sum.
            let onto = if ranks.rank() == 0 { Onto::Add } else { Onto::Replace };
            matrix.apply(source, &mut self.x, onto);
            return ranks.all_reduce(&mut self.x);
        };
        // What was normed has been used.
        matrix.apply(source, &mut self.normed, Onto::Replace);
        ranks.all_reduce(&mut self.normed)?;
        rms_norm_in_place(&mut self.normed, gain, epsilon);
        self.x.iter_mut().zip(&self.normed).for_each(|(x, y)| *x += y);
        Ok(())
    }

    /// What was normed last, `[rows, hidden]`: for the head in the end, of the rows whose logits were wanted, the last
    /// ones.
    pub(super) fn normed(&self) -> &[f32] {
        &self.normed
    }

    /// Keeps the queries of all passes from now on.
    pub(super) fn record_queries(&mut self, layers: u32) {
        self.recorded = vec![Vec::new(); layers as usize];
    }

    /// Those that were kept, by layer; none are kept any more.
    pub(super) fn recorded_queries(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.recorded)
    }

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
    ) -> Result<(), ModelError> {
        // On a thread of the pool: for any other each product would have to wake one.
        match self.pool.clone() {
            None => rayon::scope(|_| self.pass(tokens, batch, wanted, logits)),
            Some(pool) => pool.install(|| self.pass(tokens, batch, wanted, logits)),
        }
    }

    /// Runs the batch's tokens and answers a request a row. Logits are brought together only for requests that need them.
    pub(super) fn forward_select(
        &mut self,
        tokens: &[u32],
        batch: &Batch,
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        let top = |select: &Select| match select {
            Select::Top { k } => Some(*k),
            _ => None,
        };
        let ks = select.iter().map(top).collect::<Option<Vec<_>>>();
        let mut logits = Vec::new();
        let Some(ks) = ks.filter(|_| self.ranks.ranks() > 1) else {
            self.forward(tokens, batch, Wanted::All, &mut logits)?;
            return Ok(select::answers(select, &logits, self.config.vocabulary as usize));
        };
        self.forward(tokens, batch, Wanted::Own, &mut logits)?;
        let own = self.shard.vocabulary();
        Ok(best_of_all(&mut *self.ranks, (&logits, own), &ks)?)
    }

    fn pass(
        &mut self,
        tokens: &[u32],
        batch: &Batch,
        wanted: Wanted,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.start(tokens);
        for layer in 0..self.config.layers {
            self.attend(layer, batch)?;
            self.feed_forward(layer)?;
        }
        Ok(self.finish(wanted, logits)?)
    }

    /// Embeds the tokens.
    fn start(&mut self, tokens: &[u32]) {
        let (scratch, config, n) = (&mut self.scratch, &self.config, tokens.len());
        scratch.x.clear();
        for &token in tokens {
            let row = token as usize;
            self.params.embedding.push_row(row, &mut scratch.x);
        }
        let scale = config.variant.embedding_scale;
        if scale != 1.0 {
            scratch.x.iter_mut().for_each(|x| *x *= scale);
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

    /// `x += post_norm(W_o attention(turn(norm(W_q h + b)), ...))`, where `h = norm(x)`; of bias, the heads' norms, turn
    /// and the norm after it what the model has.
    fn attend(&mut self, index: u32, batch: &Batch) -> Result<(), ModelError> {
        let scratch = &mut self.scratch;
        let layer: &Layer = &self.params.layers[index as usize];
        let (gain, epsilon) = (&layer.attention_norm, self.config.rms_eps);
        rms_norm(&scratch.x, gain, epsilon, &mut scratch.normed);
        let products = [
            (&layer.query, &mut scratch.q[..]),
            (&layer.key, &mut scratch.k[..]),
            (&layer.value, &mut scratch.v[..]),
        ];
        apply_all(products, &scratch.normed, Onto::Replace);
        if let Some([query, key, value]) = &layer.biases {
            add_to_rows(&mut scratch.q, query);
            add_to_rows(&mut scratch.k, key);
            add_to_rows(&mut scratch.v, value);
        }
        if let Some([query, key]) = &layer.head_norms {
            rms_norm_in_place(&mut scratch.q, query, epsilon);
            rms_norm_in_place(&mut scratch.k, key, epsilon);
        }
        let table = match self.config.variant.turn(index) {
            Turn::Model => Some(&self.rotary),
            Turn::Local => self.local_rotary.as_ref(),
            Turn::Not => None,
        };
        let mut kv = Kv::new(&scratch.k, &scratch.v);
        if let Some(table) = table {
            let turned = table.rotate(batch.positions(), &mut scratch.q);
            turned.map_err(CacheError::from)?;
            kv = kv.rotated(table);
        }
        if let Some(queries) = scratch.recorded.get_mut(index as usize) {
            queries.extend_from_slice(&scratch.q);
        }
        let cache = &mut self.cache;
        // A layer that reads another's has none of its own.
        if cache.layer_map().is_none_or(|map| map.is_own(index)) {
            cache.append(index, batch, kv)?;
        }
        match self.retain.observe() {
            None => cache.attend(index, batch, &scratch.q, &mut scratch.attended)?,
            Some(observe) => {
                scratch.lse.resize(scratch.q.len() / self.config.head_dim as usize, 0.0);
                let out = Out::with_lse(&mut scratch.attended, &mut scratch.lse);
                cache.attend(index, batch, &scratch.q, out)?;
                cache.score(index, batch, observe, &scratch.q, &scratch.lse)?;
            }
        }
        let post_norm = layer.post_norms.as_ref().map(|[attention, _]| (attention, epsilon));
        Ok(scratch.add(&layer.output, From::Attention, post_norm, &mut *self.ranks)?)
    }

    /// `x += post_norm(W_down (f(W_gate h) * W_up h))`, where `h = norm(x)`.
    fn feed_forward(&mut self, index: u32) -> Result<(), RankError> {
        let scratch = &mut self.scratch;
        let layer = &self.params.layers[index as usize];
        let (gain, epsilon) = (&layer.ffn_norm, self.config.rms_eps);
        rms_norm(&scratch.x, gain, epsilon, &mut scratch.normed);
        let products = [(&layer.gate, &mut scratch.gate[..]), (&layer.up, &mut scratch.up[..])];
        apply_all(products, &scratch.normed, Onto::Replace);
        gate_mul(self.config.variant.activation, &mut scratch.gate, &scratch.up);
        let post_norm = layer.post_norms.as_ref().map(|[_, ffn]| (ffn, epsilon));
        scratch.add(&layer.down, From::Gate, post_norm, &mut *self.ranks)
    }

    fn finish(&mut self, wanted: Wanted, logits: &mut Vec<f32>) -> Result<(), RankError> {
        let scratch = &mut self.scratch;
        let width = self.config.hidden as usize;
        let first = match wanted {
            Wanted::All | Wanted::Own => 0,
            Wanted::Last => scratch.x.len() - width,
            Wanted::None => return Ok(()),
        };
        let (x, normed) = (&scratch.x[first..], &mut scratch.normed[first..]);
        let (gain, epsilon) = (&self.params.final_norm, self.config.rms_eps);
        rms_norm(x, gain, epsilon, normed);
        let head = self.params.head();
        logits.resize(x.len() / width * head.rows(), 0.0);
        head.apply(normed, logits, Onto::Replace);
        if let Some(cap) = self.config.variant.logit_cap {
            soft_cap(logits, cap);
        }
        if self.ranks.ranks() > 1 && wanted != Wanted::Own {
            let parts = self.ranks.all_gather(logits)?;
            logits.clear();
            for row in 0..x.len() / width {
                for (rank, part) in (0..).zip(&parts) {
                    let entries = self.shard.vocabulary_of(rank).len();
                    logits.extend_from_slice(&part[row * entries..][..entries]);
                }
            }
        }
        Ok(())
    }
}
