//! A step as the work of [`TreeCache::capture`] sees it.

#[cfg(feature = "cuda")]
use super::capture::{gpu, step_call};
use super::{Batch, CacheError, Kv, Out, Rows, TreeCache};
use crate::cache::KvElement;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaCache, DevicePtr, Event, RawStream};
use crate::retain::Observe;

/// A step that is being run or captured: the cache for one batch.
#[derive(Debug)]
pub struct Step<'a> {
    pub(super) cache: &'a mut TreeCache,
    pub(super) batch: &'a Batch,
    /// Of the graph: those of the batch, or more.
    pub(super) rows: usize,
}

/// How [`TreeCache::capture_with`] runs a step.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, Default)]
pub struct StepOptions<'e> {
    /// Rows of the graph, where these are more than the batch has, so that one graph serves batches of several sizes.
    /// Rows without a token have the append target [`NONE`](crate::abi::NONE), and attention passes them over.
    pub rows: usize,
    /// Recorded on the cache's stream right before and right after the step's launches.
    pub events: Option<(&'e Event, &'e Event)>,
}

/// The GPU's side of a step, for launches of your own in the place of [`Step::append`].
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
pub struct StepGpu<'a> {
    /// Pages and counters.
    pub cache: &'a CudaCache,
    /// Where each row's K and V go: `[rows]` [`AppendTarget`](crate::abi::AppendTarget)s, with
    /// [`StepOptions::rows`].
    pub targets: DevicePtr,
    /// The cache's stream: what is enqueued there is part of the graph.
    pub stream: RawStream,
}

impl Step<'_> {
    /// The batch.
    pub fn batch(&self) -> &Batch {
        self.batch
    }

    /// As [`TreeCache::append`].
    ///
    /// # Errors
    /// Those of [`TreeCache::append`]; [`BackendError::NotOnDevice`](crate::attention::BackendError::NotOnDevice) for
    /// rows of the host in a step that is captured; [`CacheError::PaddedStep`].
    pub fn append<T: KvElement>(&mut self, layer: u32, kv: Kv<'_, T>) -> Result<(), CacheError> {
        if self.rows != self.batch.rows() {
            return Err(CacheError::PaddedStep { rows: self.rows, tokens: self.batch.rows() });
        }
        self.cache.append(layer, self.batch, kv)
    }

    /// As [`TreeCache::attend`].
    ///
    /// # Errors
    /// Those of [`TreeCache::attend`], and as [`Step::append`].
    pub fn attend<'a, T: KvElement>(
        &mut self,
        layer: u32,
        q: impl Into<Rows<'a, T>>,
        out: impl Into<Out<'a, T>>,
    ) -> Result<(), CacheError> {
        self.cache.attend(layer, self.batch, q, out)
    }

    /// As [`TreeCache::score`]. A captured step leaves the same scores each time.
    ///
    /// # Errors
    /// Those of [`TreeCache::score`], and as [`Step::append`].
    pub fn score<'a, T: KvElement>(
        &mut self,
        layer: u32,
        observe: Observe,
        q: impl Into<Rows<'a, T>>,
        lse: impl Into<Rows<'a, f32>>,
    ) -> Result<(), CacheError> {
        self.cache.score(layer, self.batch, observe, q, lse)
    }

    /// What launches of your own need that write K and V in the place of [`Step::append`]; counters and targets are
    /// right once the stream is there. `None` on the CPU.
    ///
    /// # Errors
    /// The device's.
    #[cfg(feature = "cuda")]
    pub fn gpu(&mut self) -> Result<Option<StepGpu<'_>>, CacheError> {
        let call = step_call(&self.cache.forest, self.batch, self.rows, None);
        let Some(backend) = gpu(&mut *self.cache.backend) else {
            return Ok(None);
        };
        let targets = backend.step_targets(&call)?;
        let (cache, stream) = (backend.cache(), backend.stream().raw());
        Ok(Some(StepGpu { cache, targets, stream }))
    }

    /// The cache's stream, for launches of your own: what they enqueue there is part of the graph. `None` on the CPU.
    #[cfg(feature = "cuda")]
    pub fn stream(&mut self) -> Option<RawStream> {
        let backend = gpu(&mut *self.cache.backend)?;
        Some(backend.stream().raw())
    }
}
