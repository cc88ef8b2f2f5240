//! Heads that there are no kernels for: their rows on the device, each half followed by zeros.
//!
//! Zeros change no logit, and what they make of V is cut off. Halves are padded, not rows, so that dims which a rotary
//! embedding turns together stay half a row apart.

use std::borrow::Cow;
use std::sync::Arc;

use kernels_gpu::layout::CORE;
use kernels_gpu::ptx::{self, Arguments as _};

use super::CudaBackend;
use crate::cache::CacheShape;
use crate::cuda::{
    Append, AttendBuffers, CudaDevice, CudaError, DeviceBuffer, DevicePtr, Kernel, RawStream,
};

/// How rows are padded.
#[derive(Clone, Debug)]
pub(super) struct Padding {
    kernel: Kernel,
    half: Half,
}

/// Elements of half a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half {
    /// As it comes in and goes out.
    pub(super) own: u32,
    /// As kernels see it.
    pub(super) padded: u32,
}

/// Padded rows of one kind; captured steps keep those that they use.
#[derive(Debug)]
pub(super) struct PaddedRows {
    what: &'static str,
    buffer: Option<Arc<DeviceBuffer<u16>>>,
}

/// Padded rows of all kinds.
#[derive(Debug)]
pub(super) struct PaddedBuffers {
    padding: Padding,
    /// Keys, then values.
    kv: PaddedRows,
    q: PaddedRows,
    out: PaddedRows,
}

impl Half {
    /// Of rows in the host's memory and on the device.
    pub(super) const fn of(shape: &CacheShape, stored: &CacheShape) -> Self {
        Self { own: shape.head_dim / 2, padded: stored.head_dim / 2 }
    }

    /// Bytes on the device of so many as they come in.
    pub(super) const fn padded_bytes(self, bytes: usize) -> usize {
        bytes / self.own as usize * self.padded as usize
    }

    /// Rows in so many bytes as they come in.
    pub(super) const fn heads(self, bytes: usize) -> usize {
        bytes / (2 * self.own as usize * size_of::<u16>())
    }

    /// Copies a row to its padded one.
    pub(super) fn widen<T: Copy>(self, row: &[T], padded: &mut [T]) {
        let halves = row.chunks_exact(self.own as usize);
        for (half, padded) in halves.zip(padded.chunks_exact_mut(self.padded as usize)) {
            padded[..half.len()].copy_from_slice(half);
        }
    }

    /// Copies what is not padding of rows.
    pub(super) fn cut<T: Copy>(self, padded: &[T], row: &mut [T]) {
        let halves = row.chunks_exact_mut(self.own as usize);
        for (half, padded) in halves.zip(padded.chunks_exact(self.padded as usize)) {
            half.copy_from_slice(&padded[..half.len()]);
        }
    }

    /// A table whose rows are as long as a half, as long as the padded one: what is added meets zeros.
    pub(super) fn table(self, values: &[f32]) -> Cow<'_, [f32]> {
        if self.own == self.padded {
            return values.into();
        }
        let mut padded = vec![0.0; values.len() / self.own as usize * self.padded as usize];
        self.widen(values, &mut padded);
        padded.into()
    }
}

impl Padding {
    /// `None` for heads that there are kernels for.
    pub(super) fn new(device: &CudaDevice, shape: &CacheShape) -> Result<Option<Self>, CudaError> {
        let half = Half::of(shape, &shape.padded());
        if half.own == half.padded {
            return Ok(None);
        }
        let kernel = device.kernel("pad_rows", ptx::PadRows::BYTES)?;
        Ok(Some(Self { kernel, half }))
    }

    pub(super) const fn half(&self) -> Half {
        self.half
    }

    /// Enqueues `heads` rows of each array, padded, to `to`.
    ///
    /// # Safety
    /// The arrays are valid for so many rows until the work is done and 16-byte aligned, `to` for the padded ones.
    pub(super) unsafe fn widen(
        &self,
        [first, second]: [DevicePtr; 2],
        heads: usize,
        to: DevicePtr,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let Half { own, padded } = self.half;
        // SAFETY: the caller's.
        unsafe { self.run([first, second], 2 * heads, [own, padded], to, stream) }
    }

    /// # Safety
    /// As [`Self::widen`], of rows of `lengths[0]` that become rows of `lengths[1]`.
    unsafe fn run(
        &self,
        [first, second]: [DevicePtr; 2],
        rows: usize,
        [from, to]: [u32; 2],
        target: DevicePtr,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let arrays = if second == DevicePtr::NULL { 1 } else { 2 };
        let arguments = ptx::PadRows {
            first: first.0,
            second: second.0,
            target: target.0,
            count: rows as u32,
            from,
            to,
        };
        let threads = (arrays * rows) as u64 * u64::from(to / CORE);
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the caller's.
        unsafe { self.kernel.launch_threads(threads, arguments, stream) }
    }
}

impl PaddedRows {
    const fn new(what: &'static str) -> Self {
        Self { what, buffer: None }
    }

    /// The buffer, of at least `len` elements.
    fn reserve(
        &mut self,
        device: &CudaDevice,
        len: usize,
    ) -> Result<Arc<DeviceBuffer<u16>>, CudaError> {
        if let Some(buffer) = self.buffer.as_ref().filter(|buffer| buffer.len() >= len) {
            return Ok(buffer.clone());
        }
        self.buffer = None;
        let room = len.next_power_of_two();
        let buffer = Arc::new(DeviceBuffer::uninitialized(device, self.what, room)?);
        self.buffer = Some(buffer.clone());
        Ok(buffer)
    }
}

impl PaddedBuffers {
    pub(super) fn new(padding: Padding) -> Self {
        Self {
            padding,
            kv: PaddedRows::new("padded keys and values"),
            q: PaddedRows::new("padded queries"),
            out: PaddedRows::new("padded outputs"),
        }
    }

    pub(super) fn padding(&self) -> &Padding {
        &self.padding
    }

    /// Makes room for `q_heads` query heads: none can be made while a step is captured.
    pub(super) fn prepare(&mut self, device: &CudaDevice, q_heads: usize) -> Result<(), CudaError> {
        let len = self.elements(q_heads);
        self.q.reserve(device, len)?;
        self.out.reserve(device, len).map(drop)
    }

    /// Elements of so many padded heads.
    const fn elements(&self, heads: usize) -> usize {
        2 * heads * self.padding.half.padded as usize
    }
}

impl CudaBackend {
    /// What rows of an append are as kernels take them.
    ///
    /// # Safety
    /// As [`CudaCache::append`](crate::cuda::CudaCache::append), of rows of the backend's shape.
    pub(super) unsafe fn padded_append(&mut self, append: Append) -> Result<Append, CudaError> {
        let Some(buffers) = &mut self.padded else { return Ok(append) };
        let heads = append.count as usize * self.shape.kv_heads as usize;
        let len = buffers.elements(heads);
        let rows = buffers.kv.reserve(self.stream.device(), 2 * len)?;
        let (k, v) = (rows.pointer(), rows.at(len));
        let stream = self.stream.raw();
        // SAFETY: the caller's; both arrays fit the buffer, which is used on this stream only.
        unsafe { buffers.padding.widen([append.k, append.v], heads, k, stream) }?;
        self.keep(&rows);
        Ok(Append { k, v, ..append })
    }

    /// The same of queries.
    ///
    /// # Safety
    /// As [`CudaCache::attend`](crate::cuda::CudaCache::attend), of queries of the backend's shape.
    pub(super) unsafe fn padded_q(
        &mut self,
        q: DevicePtr,
        q_heads: usize,
    ) -> Result<DevicePtr, CudaError> {
        let heads = self.heads_of_step(q_heads);
        let Some(buffers) = &mut self.padded else { return Ok(q) };
        let len = buffers.elements(heads);
        let rows = buffers.q.reserve(self.stream.device(), len)?;
        let stream = self.stream.raw();
        // SAFETY: as in `padded_append`.
        unsafe { buffers.padding.widen([q, DevicePtr::NULL], heads, rows.pointer(), stream) }?;
        self.keep(&rows);
        Ok(rows.pointer())
    }

    /// The same of an attention call, whose results go to padded rows first.
    ///
    /// # Safety
    /// As [`Self::padded_q`].
    pub(super) unsafe fn padded_attend(
        &mut self,
        buffers: AttendBuffers,
        q_heads: usize,
    ) -> Result<AttendBuffers, CudaError> {
        // SAFETY: the caller's.
        let q = unsafe { self.padded_q(buffers.q, q_heads) }?;
        let heads = self.heads_of_step(q_heads);
        let Some(padded) = &mut self.padded else { return Ok(buffers) };
        let len = padded.elements(heads);
        let out = padded.out.reserve(self.stream.device(), len)?;
        self.keep(&out);
        Ok(AttendBuffers { q, out: out.pointer(), ..buffers })
    }

    /// Brings the results of [`Self::padded_attend`] to where they were to go.
    ///
    /// # Safety
    /// As [`Self::padded_attend`].
    pub(super) unsafe fn cut_out(
        &self,
        padded: DevicePtr,
        out: DevicePtr,
        q_heads: usize,
    ) -> Result<(), CudaError> {
        let Some(buffers) = &self.padded else { return Ok(()) };
        let Half { own, padded: long } = buffers.padding.half;
        let rows = 2 * self.heads_of_step(q_heads);
        let stream = self.stream.raw();
        // SAFETY: as in `padded_append`.
        unsafe { buffers.padding.run([padded, DevicePtr::NULL], rows, [long, own], out, stream) }
    }

    /// Query heads of a call: of a captured step those of all its rows, whatever the batch has.
    fn heads_of_step(&self, q_heads: usize) -> usize {
        self.capturing.as_ref().map_or(q_heads, |inputs| q_heads.max(inputs.q_heads))
    }

    /// Has the step that is being captured keep what it uses.
    fn keep(&mut self, rows: &Arc<DeviceBuffer<u16>>) {
        if let Some(inputs) = &mut self.capturing {
            inputs.use_rows(rows);
        }
    }

    /// Halves of rows, in the host's memory and on the device.
    pub(super) fn half(&self) -> Half {
        Half::of(&self.shape, self.cache.shape())
    }
}
