//! The launches of a pass that know nothing of its tree: norms, products, and what ranks tell each other.

use deft::cuda::{DeviceBuffer, DevicePtr, RawStream};

use super::CudaModelError;
use super::buffers::{Buffers, chosen_at};
use super::cublas::{Product, Sums};
use super::forward::Forward;
use super::ops::{RmsNorm, TopK};
use super::probe::Seen;
use super::ranks::DeviceRanks;

/// Launches over so many rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'r> {
    pub(super) forward: &'r Forward,
    pub(super) count: u32,
    pub(super) stream: RawStream,
    /// The others, where they take part.
    pub(super) ranks: Option<&'r DeviceRanks>,
}

impl Rows<'_> {
    /// Whether what ranks add to the residual stream of these rows comes with the norm that follows.
    pub(super) fn adds_later(&self) -> bool {
        self.ranks.is_some() && DeviceRanks::rounds(self.count)
    }

    /// Normalises the residual stream, or the rows that `picks` names, once what ranks have `added` is in it.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    pub(super) unsafe fn norm(
        &self,
        weight: &DeviceBuffer<f32>,
        picks: Option<&DeviceBuffer<u32>>,
        added: bool,
    ) -> Result<(), CudaModelError> {
        let config = self.forward.weights.part();
        let buffers = &self.forward.buffers;
        let norm = RmsNorm {
            x: buffers.x.pointer(),
            picks: picks.map_or(DevicePtr::NULL, DeviceBuffer::pointer),
            weight: weight.pointer(),
            out: buffers.normed.pointer(),
            rows: self.count,
            hidden: config.hidden,
            eps: config.rms_eps,
        };
        // SAFETY: as in `enqueue`.
        unsafe {
            match self.ranks.filter(|_| added) {
                None => self.forward.ops.rms_norm(&norm, self.stream)?,
                Some(ranks) => {
                    self.forward.ops.add_rms_norm(&norm, ranks.sums(), self.stream)?;
                }
            }
        }
        Ok(())
    }

    /// `y = x w^T` with `w` of `[outputs, inner]`, rows of `y` being `stride` apart.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    pub(super) unsafe fn multiply(
        &self,
        x: DevicePtr,
        w: DevicePtr,
        y: DevicePtr,
        ([outputs, inner], stride): ([u32; 2], u32),
        into: Sums,
    ) -> Result<(), CudaModelError> {
        let product = Product {
            rows: self.count,
            outputs,
            inner,
            stride,
            x,
            w,
            y,
            dtype: self.forward.weights.dtype(),
            into,
        };
        // SAFETY: as in `enqueue`.
        Ok(unsafe { self.forward.blas.multiply(&product) }?)
    }

    /// Adds the sum over ranks of `source w^T`, with `w` of `[hidden, inner]`, to the residual stream; where
    /// [`Rows::adds_later`], by the norm that follows.
    ///
    /// # Safety
    /// As [`Run::enqueue`].
    pub(super) unsafe fn add(
        &self,
        source: DevicePtr,
        w: &DeviceBuffer<u16>,
        inner: u32,
    ) -> Result<(), CudaModelError> {
        let hidden = self.forward.weights.part().hidden;
        debug_assert_eq!(w.len(), hidden as usize * inner as usize);
        let x = self.forward.buffers.x.pointer();
        let (w, shape) = (w.pointer(), ([hidden, inner], hidden));
        // SAFETY: as in `enqueue`.
        unsafe {
            let Some(ranks) = self.ranks else {
                return self.multiply(source, w, x, shape, Sums::Added);
            };
            // All ranks have the stream, and one brings it to a sum that is not rounded.
            let (to, into) = match (self.adds_later(), ranks.rank()) {
                (true, _) => (ranks.sums(), Sums::Half),
                (false, 0) => (x, Sums::Added),
                (false, _) => (x, Sums::F32),
            };
            self.multiply(source, w, to, shape, into)?;
            ranks.sum(x, (self.count, hidden), self.stream)
        }
    }

    /// Where the `k` highest of each row's logits go.
    pub(super) fn ranking(&self, k: u32) -> TopK {
        let Buffers { logits, chosen, .. } = &self.forward.buffers;
        let vocab = self.forward.weights.part().vocabulary;
        let (ids, log_probs) = chosen_at(chosen, self.count * k);
        TopK { logits: logits.pointer(), ids, log_probs, rows: self.count, vocab, k }
    }

    pub(super) fn floats<'b>(&self, buffer: &'b DeviceBuffer<f32>, width: u32) -> Seen<'b> {
        Seen::F32(buffer, [self.count, width])
    }

    pub(super) fn halves<'b>(&self, buffer: &'b DeviceBuffer<u16>, width: u32) -> Seen<'b> {
        Seen::Half(buffer, [self.count, width])
    }
}
