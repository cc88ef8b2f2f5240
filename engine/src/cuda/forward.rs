//! The forward pass, as work enqueued on a stream: nothing is allocated, copied or waited for, so it can be
//! captured.

use super::ops::{Embed, ModelOps, RotateAppend, SiluMul};
use deft::cuda::{DeviceBuffer, DevicePtr, DeviceRows, Rotary, Stream};
use deft::retain::Observe;
use deft::{DType, KvElement, Out, Step, StepGpu, bf16, f16};

use super::buffers::{Buffers, Input};
use super::cublas::{Cublas, Sums};
use super::launches::Rows;
use super::probe::{Observer, Stage};
use super::ranks::DeviceRanks;
use super::{CudaModelError, CudaWeights};
use crate::Turn;

/// What is done with the last layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tail {
    /// Logits of all rows.
    Logits,
    /// Logits of the row that [`Buffers::pick`] names.
    LogitsOfOne,
    /// So many of all rows' logits are ranked or drawn by [`Buffers::sampling`]; the first is the token that is fed to the
    /// next pass.
    Choose(u32),
    /// So many are chosen of all rows' logits together, by [`Buffers::best`].
    Best(u32),
    /// `k` of all rows' logits are ranked; nothing is fed.
    Ranked {
        k: u32,
        /// Whether all logits are there after it.
        logits: bool,
    },
}

/// What a pass does: a captured graph serves equal ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pass {
    pub(super) tail: Tail,
    /// Whether there is attention; without it a pass is timed that does all the rest.
    pub(super) attention: bool,
    /// The same of what ranks tell each other.
    pub(super) ranks: bool,
    /// The scores that attention leaves.
    pub(super) observe: Option<Observe>,
}

impl Pass {
    /// All of a pass.
    pub(super) const fn whole(tail: Tail) -> Self {
        Self { tail, attention: true, ranks: true, observe: None }
    }
}

/// All that does not change from pass to pass.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) weights: CudaWeights,
    pub(super) ops: ModelOps,
    pub(super) blas: Cublas,
    pub(super) buffers: Buffers,
    /// Where there are several.
    pub(super) ranks: Option<DeviceRanks>,
}

impl Forward {
    /// Device memory besides the weights.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.buffers.memory_bytes() + self.ranks.as_ref().map_or(0, DeviceRanks::memory_bytes)
    }

    /// Whether there may be another pass.
    ///
    /// # Errors
    /// [`CudaModelError::Ranks`]: what has ended the run.
    pub(super) fn check(&self) -> Result<(), CudaModelError> {
        self.ranks.as_ref().map_or(Ok(()), DeviceRanks::check)
    }

    /// Waits for what was enqueued on `stream`, where other ranks may keep it from ending.
    ///
    /// # Errors
    /// [`CudaModelError::Ranks`].
    pub(super) fn settle(&self, stream: &Stream) -> Result<(), CudaModelError> {
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.settle(stream))
    }
}

/// One pass about to be enqueued, as a step of the cache.
pub(super) struct Run<'r, 's> {
    pub(super) step: &'r mut Step<'s>,
    pub(super) rows: Rows<'r>,
}

impl<'r, 's> Run<'r, 's> {
    /// A pass of `count` rows, those of the step.
    pub(super) fn new(
        forward: &'r Forward,
        step: &'r mut Step<'s>,
        count: u32,
    ) -> Result<Self, CudaModelError> {
        let stream = on_gpu(step)?.stream;
        Ok(Self { step, rows: Rows { forward, count, stream, ranks: None } })
    }

    /// Enqueues the pass; `observer` sees each stage's output on its way.
    ///
    /// # Safety
    /// The buffers have room for the rows and the tail's, inputs are those of the step's batch, tokens and positions
    /// below the model's vocabulary and context; nothing else that uses them runs at the same time on another stream.
    pub(super) unsafe fn enqueue(
        &mut self,
        pass: Pass,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        self.rows.ranks = self.rows.forward.ranks.as_ref().filter(|_| pass.ranks);
        let Rows { forward, count, stream, .. } = self.rows;
        let Forward { weights, ops, buffers, .. } = forward;
        let config = weights.part();
        let x = &buffers.x;
        let embed = Embed {
            tokens: buffers.inputs.pointer(Input::Tokens),
            table: weights.embedding.pointer(),
            x: x.pointer(),
            rows: count,
            hidden: config.hidden,
        };
        // SAFETY: the caller's, for this and all below: buffers have room for the rows and their documented shapes,
        // which follow from the model's, and live as long as the model does.
        unsafe {
            ops.embed(&embed, stream)?;
            observer.saw(0, Stage::Embedded, self.rows.floats(x, config.hidden))?;
            for layer in 0..config.layers {
                self.attention(layer, pass, observer)?;
                self.feed_forward(layer, observer)?;
            }
            self.tail(pass.tail, observer)
        }
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn attention(
        &mut self,
        layer: u32,
        pass: Pass,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let Rows { forward, count, stream, .. } = self.rows;
        let Forward { weights, ops, buffers, .. } = forward;
        let config = weights.part();
        let w = weights.layer(layer);
        let (q, kv) = (config.q_width(), config.kv_width());
        let pointer = |some: &Option<DeviceBuffer<f32>>| {
            some.as_ref().map_or(DevicePtr::NULL, DeviceBuffer::pointer)
        };
        let [cos, sin] = match config.variant.turn(layer) {
            Turn::Not => [DevicePtr::NULL; 2],
            _ => [buffers.cos.pointer(), buffers.sin.pointer()],
        };
        let rotary = Rotary { positions: buffers.inputs.pointer(Input::Positions), cos, sin };
        // SAFETY: as in `enqueue`.
        unsafe {
            self.rows.norm(&w.attention_norm, None, layer > 0 && self.rows.adds_later())?;
            let (normed, qkv) = (&buffers.normed, &buffers.qkv);
            observer.saw(layer, Stage::AttentionInput, self.rows.halves(normed, config.hidden))?;
            let shape = [q + 2 * kv, config.hidden];
            let [x, y] = [normed, qkv].map(DeviceBuffer::pointer);
            self.rows.multiply(x, w.qkv.pointer(), y, (shape, shape[0]), Sums::Half)?;
            observer.saw(layer, Stage::Projected, self.rows.halves(qkv, q + 2 * kv))?;
            let gpu = on_gpu(self.step)?;
            let append = RotateAppend {
                qkv: qkv.pointer(),
                bias: pointer(&w.qkv_bias),
                norms: pointer(&w.head_norms),
                q: buffers.q.pointer(),
                targets: gpu.targets,
                count,
                q_heads: config.q_heads,
                eps: weights.head_eps(),
            };
            ops.rotate_append(gpu.cache, layer, &append, &rotary, stream)?;
            observer.saw(layer, Stage::Queries, self.rows.halves(&buffers.q, q))?;
            if pass.attention {
                self.attend(layer, pass.observe)?;
            }
            observer.saw(layer, Stage::Attended, self.rows.halves(&buffers.attended, q))?;
            self.rows.add(buffers.attended.pointer(), &w.output, q)?;
            let x = self.rows.floats(&buffers.x, config.hidden);
            observer.saw(layer, Stage::AfterAttention, x)
        }
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn attend(
        &mut self,
        layer: u32,
        observe: Option<Observe>,
    ) -> Result<(), CudaModelError> {
        // SAFETY: the caller's.
        unsafe {
            match self.rows.forward.weights.dtype() {
                DType::F16 => self.attend_as::<f16>(layer, observe),
                _ => self.attend_as::<bf16>(layer, observe),
            }
        }
    }

    /// # Safety
    /// As [`Run::enqueue`]; `T` is the model's type.
    unsafe fn attend_as<T: KvElement>(
        &mut self,
        layer: u32,
        observe: Option<Observe>,
    ) -> Result<(), CudaModelError> {
        let Rows { forward, stream, .. } = self.rows;
        let config = forward.weights.part();
        let rows = self.step.batch().rows();
        let elements = rows * config.q_width() as usize;
        let heads = rows * config.q_heads as usize;
        // SAFETY: the buffers have room for the rows, live as long as the model's graphs, and are used on this stream.
        let rows = |buffer: &DeviceBuffer<u16>| unsafe {
            DeviceRows::<T>::new(buffer.pointer(), elements, stream)
        };
        let (q, out) = (rows(&forward.buffers.q), rows(&forward.buffers.attended));
        let Some((observe, lse)) = observe.zip(forward.buffers.lse.as_ref()) else {
            return Ok(self.step.attend::<T>(layer, q, out)?);
        };
        // SAFETY: as above.
        let lse = || unsafe { DeviceRows::<f32>::new(lse.pointer(), heads, stream) };
        self.step.attend::<T>(layer, q, Out::with_lse(out, lse()))?;
        Ok(self.step.score::<T>(layer, observe, q, lse())?)
    }

    /// Enqueues attention of all layers, and nothing else.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    pub(super) unsafe fn attend_only(&mut self) -> Result<(), CudaModelError> {
        for layer in 0..self.rows.forward.weights.part().layers {
            // SAFETY: the caller's.
            unsafe { self.attend(layer, None) }?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Run::enqueue`].
    unsafe fn feed_forward(
        &self,
        layer: u32,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let Rows { forward, count, stream, .. } = self.rows;
        let Forward { weights, ops, buffers, .. } = forward;
        let config = weights.part();
        let (hidden, ffn) = (config.hidden, config.ffn);
        let w = weights.layer(layer);
        let silu = SiluMul {
            gate_up: buffers.gate_up.pointer(),
            out: buffers.gated.pointer(),
            rows: count,
            ffn,
        };
        // SAFETY: as in `enqueue`.
        unsafe {
            self.rows.norm(&w.ffn_norm, None, self.rows.adds_later())?;
            observer.saw(layer, Stage::FfnInput, self.rows.halves(&buffers.normed, hidden))?;
            let normed = buffers.normed.pointer();
            let shape = ([2 * ffn, hidden], 2 * ffn);
            self.rows.multiply(normed, w.gate_up.pointer(), silu.gate_up, shape, Sums::Half)?;
            observer.saw(layer, Stage::GateUp, self.rows.halves(&buffers.gate_up, 2 * ffn))?;
            ops.silu_mul(&silu, stream)?;
            observer.saw(layer, Stage::Gated, self.rows.halves(&buffers.gated, ffn))?;
            self.rows.add(silu.out, &w.down, ffn)?;
            observer.saw(layer, Stage::AfterFfn, self.rows.floats(&buffers.x, hidden))
        }
    }
}

/// The step's side of the GPU.
pub(super) fn on_gpu<'a>(step: &'a mut Step<'_>) -> Result<StepGpu<'a>, CudaModelError> {
    Ok(step.gpu()?.expect("the cache was built for a GPU"))
}
