//! The forward pass, as work enqueued on a stream: nothing is allocated, copied or waited for, so it can be
//! captured.

use super::ops::{Embed, Feed, ModelOps, RmsNorm, RotateAppend, Sampling, SiluMul, TopK};
use deft::attention::AttentionParams;
use deft::cuda::{AttendBuffers, CudaCache, CudaPlan, DeviceBuffer, DevicePtr, RawStream, Rotary};

use super::buffers::{Buffers, Input};
use super::cublas::{Cublas, Product, Sums};
use super::decode::HISTORY;
use super::probe::{Observer, Seen, Stage};
use super::{CudaModelError, CudaWeights};
use crate::Turn;

/// What is done with the last layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tail {
    /// Logits of all rows.
    Logits,
    /// Logits of the row that [`Buffers::pick`] names.
    LogitsOfOne,
    /// Logits of all rows, of which so many are ranked or drawn by [`Buffers::sampling`]; the first is the token that
    /// is fed to the next pass.
    Choose(u32),
}

/// What a pass does: a captured graph serves equal ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pass {
    pub(super) tail: Tail,
    /// Whether there is attention; without it a pass is timed that does all the rest.
    pub(super) attention: bool,
}

/// All that does not change from pass to pass.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) weights: CudaWeights,
    pub(super) ops: ModelOps,
    pub(super) blas: Cublas,
    pub(super) buffers: Buffers,
}

/// One pass about to be enqueued.
pub(super) struct Run<'a> {
    pub(super) forward: &'a Forward,
    pub(super) cache: &'a CudaCache,
    pub(super) plan: &'a CudaPlan,
    pub(super) rows: u32,
    pub(super) stream: RawStream,
}

impl Run<'_> {
    /// Enqueues the pass; `observer` sees each stage's output on its way.
    ///
    /// # Safety
    /// The buffers have room for `rows` rows and the tail's, inputs are those of the plan (inert rows beyond its
    /// queries), tokens and positions below the model's vocabulary and context; nothing else that uses them runs
    /// at the same time on another stream.
    pub(super) unsafe fn enqueue(
        &self,
        pass: Pass,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let Forward { weights, ops, .. } = self.forward;
        let config = weights.config();
        let inputs = &self.forward.buffers.inputs;
        let x = &self.forward.buffers.x;
        let embed = Embed {
            tokens: inputs.pointer(Input::Tokens),
            table: weights.embedding.pointer(),
            x: x.pointer(),
            rows: self.rows,
            hidden: config.hidden,
        };
        // SAFETY: the caller's, for this and all below: buffers have room for the rows and their documented shapes,
        // which follow from the model's, and live as long as the model does.
        unsafe {
            self.cache.advance(inputs.pointer(Input::Targets), self.rows, self.stream)?;
            ops.embed(&embed, self.stream)?;
            observer.saw(0, Stage::Embedded, self.floats(x, config.hidden))?;
            for layer in 0..config.layers {
                self.attention(layer, pass.attention, observer)?;
                self.feed_forward(layer, observer)?;
            }
            self.tail(pass.tail, observer)
        }
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn attention(
        &self,
        layer: u32,
        attend: bool,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let Forward { weights, ops, buffers, .. } = self.forward;
        let config = weights.config();
        let w = weights.layer(layer);
        let (q, kv) = (config.q_width(), config.kv_width());
        let pointer = |some: &Option<DeviceBuffer<f32>>| {
            some.as_ref().map_or(DevicePtr::NULL, DeviceBuffer::pointer)
        };
        let append = RotateAppend {
            qkv: buffers.qkv.pointer(),
            bias: pointer(&w.qkv_bias),
            norms: pointer(&w.head_norms),
            q: buffers.q.pointer(),
            targets: buffers.inputs.pointer(Input::Targets),
            count: self.rows,
            q_heads: config.q_heads,
            eps: config.rms_eps,
        };
        let tables = match config.variant.turn(layer) {
            Turn::Not => [DevicePtr::NULL; 2],
            _ => [buffers.cos.pointer(), buffers.sin.pointer()],
        };
        let rotary = Rotary {
            positions: buffers.inputs.pointer(Input::Positions),
            cos: tables[0],
            sin: tables[1],
        };
        let attention = AttendBuffers {
            q: buffers.q.pointer(),
            out: buffers.attended.pointer(),
            lse: DevicePtr::NULL,
        };
        let params = AttentionParams::new(config.head_dim);
        // SAFETY: as in `enqueue`.
        unsafe {
            self.norm(&w.attention_norm, None)?;
            observer.saw(
                layer,
                Stage::AttentionInput,
                self.halves(&buffers.normed, config.hidden),
            )?;
            let normed = buffers.normed.pointer();
            self.multiply(
                normed,
                &w.qkv,
                buffers.qkv.pointer(),
                [q + 2 * kv, config.hidden],
                Sums::Half,
            )?;
            observer.saw(layer, Stage::Projected, self.halves(&buffers.qkv, q + 2 * kv))?;
            ops.rotate_append(self.cache, layer, &append, &rotary, self.stream)?;
            observer.saw(layer, Stage::Queries, self.halves(&buffers.q, q))?;
            if attend {
                self.cache.attend(layer, self.plan, &attention, &params, self.stream)?;
            }
            observer.saw(layer, Stage::Attended, self.halves(&buffers.attended, q))?;
            let attended = buffers.attended.pointer();
            self.multiply(
                attended,
                &w.output,
                buffers.x.pointer(),
                [config.hidden, q],
                Sums::Added,
            )?;
            observer.saw(layer, Stage::AfterAttention, self.floats(&buffers.x, config.hidden))
        }
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn feed_forward(
        &self,
        layer: u32,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let Forward { weights, ops, buffers, .. } = self.forward;
        let config = weights.config();
        let (hidden, ffn) = (config.hidden, config.ffn);
        let w = weights.layer(layer);
        let silu = SiluMul {
            gate_up: buffers.gate_up.pointer(),
            out: buffers.gated.pointer(),
            rows: self.rows,
            ffn,
        };
        // SAFETY: as in `enqueue`.
        unsafe {
            self.norm(&w.ffn_norm, None)?;
            observer.saw(layer, Stage::FfnInput, self.halves(&buffers.normed, hidden))?;
            let normed = buffers.normed.pointer();
            self.multiply(normed, &w.gate_up, silu.gate_up, [2 * ffn, hidden], Sums::Half)?;
            observer.saw(layer, Stage::GateUp, self.halves(&buffers.gate_up, 2 * ffn))?;
            ops.silu_mul(&silu, self.stream)?;
            observer.saw(layer, Stage::Gated, self.halves(&buffers.gated, ffn))?;
            self.multiply(silu.out, &w.down, buffers.x.pointer(), [hidden, ffn], Sums::Added)?;
            observer.saw(layer, Stage::AfterFfn, self.floats(&buffers.x, hidden))
        }
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn tail(&self, tail: Tail, observer: &mut dyn Observer) -> Result<(), CudaModelError> {
        let Forward { weights, buffers, .. } = self.forward;
        let config = weights.config();
        let last = config.layers - 1;
        let one = Run { rows: 1, ..*self };
        let (picks, run) = match tail {
            Tail::LogitsOfOne => (Some(&buffers.pick), &one),
            Tail::Logits | Tail::Choose(_) => (None, self),
        };
        let (normed, logits) = (buffers.normed.pointer(), buffers.logits.pointer());
        let shape = [config.vocabulary, config.hidden];
        // SAFETY: as in `enqueue`.
        unsafe {
            run.norm(&weights.final_norm, picks)?;
            observer.saw(last, Stage::HeadInput, run.halves(&buffers.normed, config.hidden))?;
            run.multiply(normed, weights.head(), logits, shape, Sums::F32)?;
            observer.saw(last, Stage::Logits, run.floats(&buffers.logits, config.vocabulary))?;
            match tail {
                Tail::Choose(ranked) => self.choose(ranked),
                Tail::Logits | Tail::LogitsOfOne => Ok(()),
            }
        }
    }

    /// Ranks or samples, and feeds each row's first choice to the next pass.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn choose(&self, ranked: u32) -> Result<(), CudaModelError> {
        let Forward { weights, ops, buffers, .. } = self.forward;
        let inputs = &buffers.inputs;
        let ranking = TopK {
            logits: buffers.logits.pointer(),
            ids: buffers.ids.pointer(),
            log_probs: buffers.log_probs.pointer(),
            rows: self.rows,
            vocab: weights.config().vocabulary,
            k: ranked,
        };
        let sampling = Sampling {
            streams: inputs.pointer(Input::Streams),
            steps: inputs.pointer(Input::Positions),
            settings: buffers.sampling.pointer(),
        };
        let feed = Feed {
            next: ranking.ids,
            targets: inputs.pointer(Input::Targets),
            tokens: inputs.pointer(Input::Tokens),
            positions: inputs.pointer(Input::Positions),
            history: buffers.history.pointer(),
            history_len: HISTORY,
            next_stride: ranked,
            count: self.rows,
        };
        // SAFETY: as in `enqueue`.
        unsafe {
            ops.sample_top_k(&ranking, &sampling, self.stream)?;
            ops.feed(&feed, self.stream)?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn norm(
        &self,
        weight: &DeviceBuffer<f32>,
        picks: Option<&DeviceBuffer<u32>>,
    ) -> Result<(), CudaModelError> {
        let config = self.forward.weights.config();
        let buffers = &self.forward.buffers;
        let norm = RmsNorm {
            x: buffers.x.pointer(),
            picks: picks.map_or(DevicePtr::NULL, DeviceBuffer::pointer),
            weight: weight.pointer(),
            out: buffers.normed.pointer(),
            rows: self.rows,
            hidden: config.hidden,
            eps: config.rms_eps,
        };
        // SAFETY: as in `enqueue`.
        Ok(unsafe { self.forward.ops.rms_norm(&norm, self.stream) }?)
    }

    /// `y = x w^T` with `w` of `[outputs, inner]`.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn multiply(
        &self,
        x: DevicePtr,
        w: &DeviceBuffer<u16>,
        y: DevicePtr,
        [outputs, inner]: [u32; 2],
        into: Sums,
    ) -> Result<(), CudaModelError> {
        debug_assert_eq!(w.len(), outputs as usize * inner as usize);
        let product = Product {
            rows: self.rows,
            outputs,
            inner,
            x,
            w: w.pointer(),
            y,
            dtype: self.forward.weights.dtype(),
            into,
        };
        // SAFETY: as in `enqueue`.
        Ok(unsafe { self.forward.blas.multiply(&product) }?)
    }

    fn floats<'b>(&self, buffer: &'b DeviceBuffer<f32>, width: u32) -> Seen<'b> {
        Seen::F32(buffer, [self.rows, width])
    }

    fn halves<'b>(&self, buffer: &'b DeviceBuffer<u16>, width: u32) -> Seen<'b> {
        Seen::Half(buffer, [self.rows, width])
    }
}
