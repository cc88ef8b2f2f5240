//! The operations of a Llama decode step between its matrix products, attention apart: one launch each.
//!
//! The residual stream is f32, what enters a product 16-bit. Nothing here allocates, copies or waits, so all of it can
//! be captured; what changes from step to step (tokens, positions, counters) is in device memory.

mod best;
mod buffers;
mod check;

use deft::DType;
use deft::cache::{KERNEL_HEAD_DIMS, ShapeError};
use deft::cuda::{CudaCache, CudaDevice, CudaError, DevicePtr, Kernel, Launch, RawStream, Rotary};
use kernels_gpu::model::limits::FILL_BLOCKS;
use kernels_gpu::ptx::{self, Arguments as _};

pub use best::BestOfRows;
pub use buffers::{
    Embed, Feed, FillRandom, MergeTopK, Pick, RmsNorm, RotateAppend, Sampling, SiluMul, TopK,
    TopKPart,
};

/// The operations' kernels for one 16-bit type and head dimension, compiled.
///
/// # Safety
/// Every operation is `unsafe` with these conditions, besides its own:
/// - the buffers are valid for their documented shapes and 16-byte aligned until the work is done, and what is written
///   overlaps nothing else that the launch reads or writes;
/// - `stream` is a stream of the device's primary context.
#[derive(Clone, Debug)]
pub struct ModelOps {
    dtype: DType,
    head_dim: u32,
    embed: Kernel,
    rms_norm: Kernel,
    add_rms_norm: Kernel,
    rotate_append: Kernel,
    silu_mul: Kernel,
    log_softmax_top_k: Kernel,
    sample_top_k: Kernel,
    top_k_part: Kernel,
    sample_part: Kernel,
    merge_top_k: Kernel,
    pick_tokens: Kernel,
    best: best::BestKernels,
    feed: Kernel,
    fill: Kernel,
    fill_f32: Kernel,
}

impl ModelOps {
    /// Compiles the kernels for activations of `dtype` and heads of `head_dim` dims.
    ///
    /// # Errors
    /// [`CudaError::DType`] for a type that has not 16 bits, [`CudaError::Shape`] for a head dimension that is not 64,
    /// 128 or 256; those of [`CudaDevice::kernel`].
    pub fn new(device: &CudaDevice, dtype: DType, head_dim: u32) -> Result<Self, CudaError> {
        if !matches!(dtype, DType::Bf16 | DType::F16) {
            return Err(CudaError::DType { dtype });
        }
        if !KERNEL_HEAD_DIMS.contains(&head_dim) {
            return Err(ShapeError::no_kernel(head_dim).into());
        }
        let typed = |name: &str, bytes: &[u32]| device.kernel(&format!("{name}_{dtype}"), bytes);
        let rotate = format!("rotate_append_{dtype}_d{head_dim}");
        Ok(Self {
            dtype,
            head_dim,
            embed: typed("embed", ptx::Embed::BYTES)?,
            rms_norm: typed("rms_norm", ptx::RmsNorm::BYTES)?,
            add_rms_norm: typed("add_rms_norm", ptx::AddRmsNorm::BYTES)?,
            rotate_append: device.kernel(&rotate, ptx::RotateAppend::BYTES)?,
            silu_mul: typed("silu_mul", ptx::SiluMul::BYTES)?,
            log_softmax_top_k: device.kernel("log_softmax_top_k", ptx::LogSoftmaxTopK::BYTES)?,
            sample_top_k: device.kernel("sample_top_k", ptx::SampleTopK::BYTES)?,
            top_k_part: device.kernel("top_k_part", ptx::TopKPart::BYTES)?,
            sample_part: device.kernel("sample_part", ptx::SamplePart::BYTES)?,
            merge_top_k: device.kernel("merge_top_k", ptx::MergeTopK::BYTES)?,
            pick_tokens: device.kernel("pick_tokens", ptx::PickTokens::BYTES)?,
            best: best::BestKernels::new(device)?,
            feed: device.kernel("feed_tokens", ptx::Feed::BYTES)?,
            fill: typed("fill_random", ptx::Fill::BYTES)?,
            fill_f32: device.kernel("fill_random_f32", ptx::Fill::BYTES)?,
        })
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Enqueues `x[i] = table[tokens[i]]`.
    ///
    /// # Safety
    /// As [`ModelOps`] says; every token is a row of the table.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn embed(&self, embed: &Embed, stream: RawStream) -> Result<(), CudaError> {
        let threads = check::chunk_threads("hidden", embed.rows, embed.hidden)?;
        // SAFETY: the arguments are the kernel's own (sizes compared when it was loaded); the rest is the caller's
        // promise.
        unsafe { self.embed.launch_threads(threads, embed.arguments(), stream) }
    }

    /// Enqueues `out = x / sqrt(mean(x^2) + eps) * weight` for each row (Zhang, Sennrich, arXiv 1910.07467).
    ///
    /// # Safety
    /// As [`ModelOps`] says; rows that are picked exist.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn rms_norm(&self, norm: &RmsNorm, stream: RawStream) -> Result<(), CudaError> {
        check::hidden(norm.hidden)?;
        // SAFETY: as in `embed`.
        unsafe { self.rms_norm.launch(blocks(norm.rows), norm.arguments(), stream) }
    }

    /// Enqueues `x += added`, and [`ModelOps::rms_norm`] of it.
    ///
    /// # Safety
    /// As there; `added` is of `x`'s shape, 16 bits, and no row is picked twice. `x` is written too.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn add_rms_norm(
        &self,
        norm: &RmsNorm,
        added: DevicePtr,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        check::hidden(norm.hidden)?;
        let arguments = norm.arguments_with(added);
        // SAFETY: as in `embed`.
        unsafe { self.add_rms_norm.launch(blocks(norm.rows), arguments, stream) }
    }

    /// Enqueues what lies between the fused projection and attention, in one launch: the bias is added, queries and keys
    /// are normed and rotated by their positions ([`RotaryTable`](deft::RotaryTable) says how; null tables turn
    /// nothing), queries go to `q`, keys and values into the pages of `layer`.
    ///
    /// # Safety
    /// As [`ModelOps`] says, and as [`CudaCache::append_rotated`]. `cache` is of the device that the kernels were
    /// loaded for.
    ///
    /// # Errors
    /// [`CudaError::Argument`] if the cache is of another type or head dimension, [`CudaError::Shape`],
    /// [`CudaError::Launch`].
    pub unsafe fn rotate_append(
        &self,
        cache: &CudaCache,
        layer: u32,
        append: &RotateAppend,
        rotary: &Rotary,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let shape = cache.shape();
        check::same("the cache's dtype", shape.dtype, self.dtype)?;
        check::same("the cache's head_dim", shape.head_dim, self.head_dim)?;
        let at = cache.layer_pointers(layer)?;
        let heads = append.q_heads.saturating_add(2 * shape.kv_heads);
        // A thread has two chunks.
        let threads =
            check::chunk_threads("a row", append.count, heads.saturating_mul(self.head_dim / 2))?;
        let arguments = append.arguments(rotary, shape.kv_heads, &at);
        // SAFETY: as in `embed`.
        unsafe { self.rotate_append.launch_threads(threads, arguments, stream) }
    }

    /// Enqueues `out = silu(gate) * up`.
    ///
    /// # Safety
    /// As [`ModelOps`] says.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn silu_mul(&self, silu: &SiluMul, stream: RawStream) -> Result<(), CudaError> {
        let threads = check::chunk_threads("ffn", silu.rows, silu.ffn)?;
        // SAFETY: as in `embed`.
        unsafe { self.silu_mul.launch_threads(threads, silu.arguments(), stream) }
    }

    /// Enqueues a ranking: the `k` highest entries of each row, highest first and the lower id first where they are
    /// equal, with their log-softmax. With `k` 1 it is the argmax.
    ///
    /// NaNs rank below all numbers. A row with a NaN or `+inf`, or with nothing but `-inf`, has no softmax: its
    /// log-probabilities are NaN.
    ///
    /// # Safety
    /// As [`ModelOps`] says.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn log_softmax_top_k(
        &self,
        top_k: &TopK,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        check::top_k(top_k)?;
        let kernel = &self.log_softmax_top_k;
        // SAFETY: as in `embed`.
        unsafe { kernel.launch(blocks(top_k.rows), top_k.arguments(), stream) }
    }

    /// Enqueues `k` draws without replacement from the softmax of `logits / temperature` of each row, in the order of
    /// drawing (Kool, van Hoof, Welling, arXiv 1903.06059); log-probabilities are the model's, of temperature 1. With
    /// temperature 0 it is [`ModelOps::log_softmax_top_k`], with `k` 1 ordinary sampling.
    ///
    /// # Safety
    /// As [`ModelOps`] says. The settings' temperature is finite and not negative, or the draws are of no
    /// distribution.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn sample_top_k(
        &self,
        top_k: &TopK,
        sampling: &Sampling,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        check::top_k(top_k)?;
        let arguments = sampling.arguments(top_k);
        // SAFETY: as in `embed`.
        unsafe { self.sample_top_k.launch(blocks(top_k.rows), arguments, stream) }
    }

    /// Enqueues a ranking of the entries of each row that are here, for [`ModelOps::merge_top_k`]: without `sampling` as
    /// [`ModelOps::log_softmax_top_k`] orders them, with it as [`ModelOps::sample_top_k`]. An entry's noise is that of its
    /// id, so parts draw what the whole row does.
    ///
    /// # Safety
    /// As [`ModelOps`] says, and as these two.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn top_k_part(
        &self,
        part: &TopKPart,
        sampling: Option<&Sampling>,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        check::part(part)?;
        let launch = blocks(part.rows);
        // SAFETY: as in `embed`.
        unsafe {
            match sampling {
                None => self.top_k_part.launch(launch, part.arguments(), stream),
                Some(sampling) => {
                    self.sample_part.launch(launch, sampling.arguments_of(part), stream)
                }
            }
        }
    }

    /// Enqueues the `k` best entries of each row by what its parts have found, in their order, with their log-softmax.
    ///
    /// # Safety
    /// As [`ModelOps`] says; alignment is to 4 bytes. The parts of a row have `k` entries or more between them, and none
    /// twice.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn merge_top_k(
        &self,
        merge: &MergeTopK,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        check::merged(merge.k)?;
        // SAFETY: as in `embed`.
        unsafe { self.merge_top_k.launch(blocks(merge.rows), merge.arguments(), stream) }
    }

    /// Enqueues tokens that rows are asked for: given ones, or draws from the softmax of `logits / temperature`. A number
    /// `u` draws the first token at which the probabilities of it and all lower ids are more than `u` together.
    /// Log-probabilities are the model's, of temperature 1; NaN for a row without a softmax.
    ///
    /// # Safety
    /// As [`ModelOps`] says; rows exist, tokens are below `vocab`.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn pick_tokens(&self, pick: &Pick, stream: RawStream) -> Result<(), CudaError> {
        // SAFETY: as in `embed`.
        unsafe { self.pick_tokens.launch(blocks(pick.blocks), pick.arguments(), stream) }
    }

    /// Enqueues the choice of the `k` entries of all rows with the highest `score + log_softmax(row)`, of equal ones those of
    /// lower rows, and lower entries. Which they are does not depend on the schedule, their order does. Rows without a
    /// softmax take no part, nor do entries without a probability.
    ///
    /// # Safety
    /// As [`ModelOps`] says.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn best_of_rows(
        &self,
        best: &BestOfRows,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        best.check()?;
        // SAFETY: the caller's.
        unsafe { self.best.launch(best, stream) }
    }

    /// Enqueues the step to the next input: each row's choice becomes its token, its position is one further.
    ///
    /// # Safety
    /// As [`ModelOps`] says; alignment is to 4 bytes.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn feed(&self, feed: &Feed, stream: RawStream) -> Result<(), CudaError> {
        check::feed(feed)?;
        let threads = u64::from(feed.count);
        // SAFETY: as in `embed`.
        unsafe { self.feed.launch_threads(threads, feed.arguments(), stream) }
    }

    /// Enqueues random values of the activations' type, for weights that stand for a model's.
    ///
    /// # Safety
    /// As [`ModelOps`] says.
    ///
    /// # Errors
    /// [`CudaError::Argument`], [`CudaError::Launch`].
    pub unsafe fn fill_random(
        &self,
        fill: &FillRandom,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { run_fill(&self.fill, fill, stream) }
    }

    /// [`ModelOps::fill_random`] for f32.
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn fill_random_f32(
        &self,
        fill: &FillRandom,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { run_fill(&self.fill_f32, fill, stream) }
    }
}

/// # Safety
/// As [`ModelOps::fill_random`], for a kernel that fills.
unsafe fn run_fill(kernel: &Kernel, fill: &FillRandom, stream: RawStream) -> Result<(), CudaError> {
    check::fill(fill)?;
    let needed = fill.chunks().div_ceil(u64::from(kernel.threads()));
    let launch = blocks(needed.min(u64::from(FILL_BLOCKS)) as u32);
    // SAFETY: as in `ModelOps::embed`.
    unsafe { kernel.launch(launch, fill.arguments(), stream) }
}

/// A launch of `count` blocks.
fn blocks(count: u32) -> Launch {
    Launch { grid: [count, 1, 1], overlaps_predecessor: false }
}
