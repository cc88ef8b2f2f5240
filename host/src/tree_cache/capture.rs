//! Steps that are captured once and replayed.

use super::step::Step;
#[cfg(feature = "cuda")]
use super::step::StepOptions;
use super::{Batch, CacheError, TreeCache};
#[cfg(feature = "cuda")]
use crate::{
    attention::{Backend, BackendError},
    cuda::{CudaBackend, CudaError, Event, PlanCapacity, RecordedStep, ScoreCall, Seen, StepCall},
};

/// Most numbers of rows that a [`StepGraph`] holds graphs of.
#[cfg(feature = "cuda")]
const MAX_SIZES: usize = 32;

/// The CUDA graphs of a step, one for each number of rows that it was run with, at most 32: the one used longest ago
/// goes first. Empty where steps are not captured.
#[derive(Debug, Default)]
pub struct StepGraph {
    /// The cache that has used it.
    cache: Option<u64>,
    /// The size used last comes last.
    #[cfg(feature = "cuda")]
    sizes: Vec<(usize, Size)>,
}

/// How far the graph of one number of rows is.
#[cfg(feature = "cuda")]
#[derive(Debug)]
enum Size {
    /// It was run launch by launch, with rows here.
    Run(Seen),
    Captured(Box<RecordedStep>),
}

/// How [`TreeCache::capture`] ran a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepRun {
    /// Call by call.
    Called,
    /// As a graph that was captured for it.
    Captured,
    /// As a graph that was there.
    Replayed,
}

impl StepGraph {
    /// No graph yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the size of `rows` rows out, if it is there.
    #[cfg(feature = "cuda")]
    fn take(&mut self, rows: usize) -> Option<Size> {
        let at = self.sizes.iter().position(|&(size, _)| size == rows)?;
        Some(self.sizes.remove(at).1)
    }

    /// Graphs that were captured and are kept.
    #[cfg(feature = "cuda")]
    pub fn graphs(&self) -> usize {
        self.captured().count()
    }

    /// Bytes of device memory that they take: room for plans, and partial results.
    #[cfg(feature = "cuda")]
    pub fn bytes(&self) -> usize {
        self.captured().map(RecordedStep::bytes).sum()
    }

    #[cfg(feature = "cuda")]
    fn captured(&self) -> impl Iterator<Item = &RecordedStep> {
        self.sizes.iter().filter_map(|(_, size)| match size {
            Size::Captured(step) => Some(&**step),
            Size::Run(_) => None,
        })
    }

    #[cfg(feature = "cuda")]
    fn put(&mut self, rows: usize, size: Size) {
        if self.sizes.len() >= MAX_SIZES {
            self.sizes.remove(0);
        }
        self.sizes.push((rows, size));
    }
}

impl TreeCache {
    /// Runs a step, `work`, which appends and attends to `batch` in every layer and may launch kernels of its own in
    /// between. On a GPU it becomes one CUDA graph: `work` is called the first time for each number of rows, so that
    /// whatever it uses is loaded, and a second time to be captured. From then on the graph is replayed and `work` is
    /// not called. Growth, new plans and other batches are good for the same graph, since all that differs between
    /// steps is brought to addresses that stay; where a plan outgrows its room, `work` is called once more.
    ///
    /// Everywhere else, and where `work` has rows in the host's memory, it is called every time. So one program serves
    /// all devices if `work` does the same in every step, with rows at the same addresses and the same tables, layers
    /// and launches; what changes, tokens say, is in device memory.
    ///
    /// Launches of your own go to `Step::stream`, or to the stream of the step's rows, which must not be the default
    /// stream. While it is captured, nothing may be allocated, copied from or to the host's pageable memory, or waited
    /// for. Two batches that take turns have a `StepGraph` each, or plans and targets are copied at every turn.
    ///
    /// ```
    /// use deft::{DType, Device, Kv, StepGraph, TreeCache, bf16};
    ///
    /// let mut cache = TreeCache::builder(&Device::cpu())
    ///     .layers(2).heads(8, 2, 64).dtype(DType::Bf16).capacity_bytes(4 << 20).build()?;
    /// let prompt = cache.insert_root()?;
    /// let mut batch = cache.batch(&[(prompt, 1)])?;
    /// let (kv, q, mut out) = ([bf16::ONE; 2 * 64], [bf16::ONE; 8 * 64], [bf16::ZERO; 8 * 64]);
    /// let mut graph = StepGraph::new();
    /// for _ in 0..100 {
    ///     cache.capture(&mut graph, &batch, |step| {
    ///         for layer in 0..2 {
    ///             step.append(layer, Kv::new(&kv[..], &kv[..]))?;
    ///             step.attend(layer, &q[..], &mut out[..])?;
    ///         }
    ///         Ok::<(), deft::CacheError>(())
    ///     })?;
    ///     cache.advance(&mut batch, 1)?;
    /// }
    /// # Ok::<(), deft::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::StaleBatch`], [`CacheError::ForeignBatch`], [`CacheError::ForeignGraph`]; those of `work`; the
    /// device's. Then nothing of a captured step has run, and the next call tries again.
    pub fn capture<E: From<CacheError>>(
        &mut self,
        graph: &mut StepGraph,
        batch: &Batch,
        work: impl FnOnce(&mut Step<'_>) -> Result<(), E>,
    ) -> Result<StepRun, E> {
        #[cfg(feature = "cuda")]
        if gpu(&mut *self.backend).is_some() {
            return self.capture_with(graph, batch, StepOptions::default(), work);
        }
        self.check_capture(graph, batch)?;
        work(&mut Step { cache: self, batch, rows: batch.rows() })?;
        Ok(StepRun::Called)
    }

    fn check_capture(&self, graph: &mut StepGraph, batch: &Batch) -> Result<(), CacheError> {
        self.check_fresh(batch)?;
        if *graph.cache.get_or_insert(self.id) != self.id {
            return Err(CacheError::ForeignGraph);
        }
        Ok(())
    }
}

/// The GPU's backend, if it is one; nobody else's steps are captured.
#[cfg(feature = "cuda")]
pub(super) fn gpu(backend: &mut dyn Backend) -> Option<&mut CudaBackend> {
    let backend: &mut dyn std::any::Any = backend;
    backend.downcast_mut()
}

/// The errors of a step's work, and of the capture around it.
#[cfg(feature = "cuda")]
struct Raised<E>(E);

#[cfg(feature = "cuda")]
impl<E: From<CacheError>> From<CudaError> for Raised<E> {
    fn from(error: CudaError) -> Self {
        Self(CacheError::from(BackendError::from(error)).into())
    }
}

/// A cache whose backend captures; no longer when this is dropped, be it by a panic.
#[cfg(feature = "cuda")]
struct Capturing<'a>(&'a mut TreeCache);

#[cfg(feature = "cuda")]
impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        self.0.gpu().finish(None, &Seen::default());
    }
}

#[cfg(feature = "cuda")]
impl TreeCache {
    fn gpu(&mut self) -> &mut CudaBackend {
        gpu(&mut *self.backend).expect("the backend is one of a GPU")
    }

    /// As [`TreeCache::capture`] on a GPU, with more rows than the batch has, or between events.
    ///
    /// # Errors
    /// As [`TreeCache::capture`].
    ///
    /// # Panics
    /// If the cache is not on a GPU.
    pub fn capture_with<E: From<CacheError>>(
        &mut self,
        graph: &mut StepGraph,
        batch: &Batch,
        StepOptions { rows, events }: StepOptions<'_>,
        work: impl FnOnce(&mut Step<'_>) -> Result<(), E>,
    ) -> Result<StepRun, E> {
        self.check_capture(graph, batch)?;
        let rows = rows.max(batch.rows());
        let (seen, before) = match graph.take(rows) {
            None => {
                self.gpu().look();
                self.gpu().record(events.map(|(begin, _)| begin)).map_err(CacheError::from)?;
                self.score_plans.observed = None;
                work(&mut Step { cache: self, batch, rows })?;
                self.gpu().record(events.map(|(_, end)| end)).map_err(CacheError::from)?;
                let mut seen = self.gpu().seen().clone();
                seen.observe = self.score_plans.observed;
                if seen.on_device() {
                    graph.put(rows, Size::Run(seen));
                }
                return Ok(StepRun::Called);
            }
            Some(Size::Captured(mut step)) => {
                let replayed = self.replay(&mut step, batch, rows, events);
                let (seen, room) = (step.seen().clone(), step.capacity());
                if let Ok(false) = replayed {
                    // Its room goes before another is made.
                    drop(step);
                } else {
                    graph.put(rows, Size::Captured(step));
                    return Ok(replayed.map(|_| StepRun::Replayed)?);
                }
                (seen, Some(room))
            }
            Some(Size::Run(seen)) => (seen, None),
        };
        let captured = self.record(batch, rows, &seen, before, work);
        let step = match captured {
            Ok(step) => step,
            Err(error) => {
                graph.put(rows, Size::Run(seen));
                return Err(error);
            }
        };
        let mut step = Box::new(step);
        let replayed = self.replay(&mut step, batch, rows, events);
        graph.put(rows, Size::Captured(step));
        replayed?;
        Ok(StepRun::Captured)
    }

    /// Captures a step without running it.
    fn record<E: From<CacheError>>(
        &mut self,
        batch: &Batch,
        rows: usize,
        seen: &Seen,
        before: Option<PlanCapacity>,
        work: impl FnOnce(&mut Step<'_>) -> Result<(), E>,
    ) -> Result<RecordedStep, E> {
        let visible = self.before_scores(batch, seen)?;
        let scores = visible.as_deref().map(|visible| self.score_plans.call(batch, visible));
        let call = step_call(&self.forest, batch, rows, scores);
        let backend = gpu(&mut *self.backend).expect("the backend is one of a GPU");
        let stream = backend.shared_stream();
        backend.prepare(&call, before).map_err(CacheError::from)?;
        let capturing = Capturing(self);
        let graph = stream.capture(|_| {
            let cache = &mut *capturing.0;
            cache.gpu().fork(seen)?;
            work(&mut Step { cache, batch, rows }).map_err(Raised)?;
            Ok(cache.gpu().join(seen)?)
        });
        let graph = graph.map_err(|Raised(error)| error)?;
        let step = capturing.0.gpu().finish(Some(graph), seen);
        Ok(step.expect("it was captured"))
    }

    /// Runs a captured step, unless it must be captured anew.
    fn replay(
        &mut self,
        step: &mut RecordedStep,
        batch: &Batch,
        rows: usize,
        events: Option<(&Event, &Event)>,
    ) -> Result<bool, CacheError> {
        let visible = self.before_scores(batch, step.seen())?;
        let scores = visible.as_deref().map(|visible| self.score_plans.call(batch, visible));
        let call = step_call(&self.forest, batch, rows, scores);
        let backend = gpu(&mut *self.backend).expect("the backend is one of a GPU");
        if !backend.can_replay(step, &call).map_err(BackendError::from)? {
            return Ok(false);
        }
        backend.replay(step, &call, events)?;
        if let Some(observe) = step.seen().observe {
            self.note_scores(batch, observe)?;
        }
        Ok(true)
    }

    /// What comes before the scores of a captured step, if it leaves some: how many tokens each row sees.
    fn before_scores(
        &mut self,
        batch: &Batch,
        seen: &Seen,
    ) -> Result<Option<Vec<u32>>, CacheError> {
        let Some(observe) = seen.observe else { return Ok(None) };
        self.begin_scores(batch, observe)?;
        Ok(Some(batch.visible(observe.window)))
    }
}

#[cfg(feature = "cuda")]
pub(super) fn step_call<'a>(
    forest: &'a crate::tree::TokenForest,
    batch: &'a Batch,
    rows: usize,
    scores: Option<ScoreCall<'a>>,
) -> StepCall<'a> {
    StepCall {
        rows,
        plan: batch.plan(),
        counters: super::counters(forest),
        targets: batch.targets(),
        positions: batch.positions(),
        scores,
    }
}
