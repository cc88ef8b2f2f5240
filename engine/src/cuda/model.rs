//! The model on a device: its forest and pages, and how a pass gets there.

use deft::cache::{DType, PagePool};
use deft::cuda::{CudaCache, CudaDevice, Stream};
use deft::plan::{Grouping, PlanConfig};
use deft::tree::TokenForest;
use deft::{CacheError, NodeKey};

use super::buffers::Buffers;
use super::cublas::Cublas;
use super::forward::Forward;
use super::lane::Lane;
use super::ops::ModelOps;
use super::options::cache_shape;
use super::rows::bucket;
use super::schedule::Schedule;
use super::{CudaMemory, CudaModelError, CudaOptions, CudaWeights};
use crate::{LlamaConfig, ModelError, Traffic};

/// Length counters at first: more are set aside when a forest has more nodes.
const SLOTS: u32 = 1 << 14;

/// A language model on a GPU.
///
/// All work goes to one stream, in order; only what gives results to the host waits for it. A step's pass has a
/// fixed number of rows (a power of two, or a multiple of 8 and more), of which those without a token do nothing,
/// and is captured as a CUDA graph when it runs a second time.
#[derive(Debug)]
pub struct CudaModel {
    pub(super) forest: TokenForest,
    pub(super) cache: CudaCache,
    pub(super) forward: Forward,
    pub(super) decode: Schedule,
    pub(super) prefill: Schedule,
    pub(super) lanes: Vec<Lane>,
    pub(super) prefill_lane: Option<Lane>,
    pub(super) options: CudaOptions,
    pub(super) traffic: Traffic,
    /// Lengths before the step's tokens: what the device counts from.
    pub(super) before: Vec<u32>,
    pub(super) positions: Vec<u32>,
    /// The last field: what enqueues on it goes first.
    pub(super) stream: Stream,
}

impl CudaModel {
    /// A model with `weights` on `device`; activations, K and V are of the weights' type.
    ///
    /// # Errors
    /// [`CudaModelError`]: a missing cuBLAS, too little device memory, options out of range.
    pub fn new(
        device: &CudaDevice,
        weights: CudaWeights,
        options: CudaOptions,
    ) -> Result<Self, CudaModelError> {
        options.check()?;
        let config = weights.config();
        let stream = Stream::new(device)?;
        // SAFETY: the stream is the model's and its last field, so it outlives the handle.
        let blas = unsafe { Cublas::new(device, options.cublas.as_deref(), stream.raw()) }?;
        let shape = cache_shape(config, weights.dtype(), options.kv_bytes)?;
        let cache = CudaCache::new(device, shape, SLOTS)?;
        let table = config.rotary_table(config.context)?;
        let rows = options.max_rows.max(options.prefill_rows);
        let buffers = Buffers::new(device, config, &table, bucket(rows), bucket(options.max_rows))?;
        let group = config.q_heads / config.kv_heads;
        let plan = |grouping| cache.plan_config(grouping, group);
        Ok(Self {
            forest: TokenForest::new(PagePool::new(shape.pages).map_err(CacheError::from)?),
            decode: schedule(plan(options.grouping))?,
            prefill: schedule(plan(Grouping::Flatten))?,
            forward: Forward {
                ops: ModelOps::new(device, weights.dtype(), config.head_dim)?,
                weights,
                blas,
                buffers,
            },
            cache,
            lanes: Vec::new(),
            prefill_lane: None,
            options,
            traffic: Traffic::default(),
            before: Vec::new(),
            positions: Vec::new(),
            stream,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        self.forward.weights.config()
    }
    /// Its weights.
    pub fn weights(&self) -> &CudaWeights {
        &self.forward.weights
    }
    /// The type of weights, activations, K and V.
    pub fn dtype(&self) -> DType {
        self.forward.weights.dtype()
    }
    /// How it was made; [`CudaModel::set_grouping`] changes one of them.
    pub fn options(&self) -> &CudaOptions {
        &self.options
    }
    /// The stream that all work is enqueued on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
    /// cuBLAS's version and file.
    pub fn cublas(&self) -> String {
        self.forward.blas.describe()
    }
    /// CUDA graphs that were captured so far and are in use.
    pub fn graphs(&self) -> usize {
        self.lanes.iter().map(Lane::graphs).sum()
    }

    /// Groups queries and KV in another way from now on.
    ///
    /// # Errors
    /// [`CacheError::Plan`](deft::CacheError::Plan).
    pub fn set_grouping(&mut self, grouping: Grouping) -> Result<(), ModelError> {
        let group = self.config().q_heads / self.config().kv_heads;
        self.decode = Schedule::new(self.cache.plan_config(grouping, group))?;
        self.options.grouping = grouping;
        Ok(())
    }

    /// Device memory that the model takes now.
    pub fn memory(&self) -> CudaMemory {
        let lanes = self.lanes.iter().chain(&self.prefill_lane);
        CudaMemory {
            weights: self.forward.weights.memory_bytes(),
            pages: 2 * self.cache.pool().len() as u64,
            buffers: self.forward.buffers.memory_bytes() + 8 * u64::from(self.cache.slots()),
            plans: lanes.map(|lane| lane.memory_bytes()).sum(),
            cublas: self.forward.blas.memory_bytes(),
        }
    }

    /// Tokens from the root to the end of `node`.
    pub(super) fn tokens_of(&self, node: NodeKey) -> Result<u64, ModelError> {
        Ok(self.forest.context_length(node)?)
    }

    /// Checks a pass of a token at each of `leaves` nodes.
    pub(super) fn check_pass(&self, leaves: usize, tokens: &[u32]) -> Result<(), ModelError> {
        if leaves == 0 {
            return Err(ModelError::Empty { argument: "leaves" });
        }
        if leaves != tokens.len() {
            let tokens = tokens.len();
            return Err(ModelError::Lengths { leaves, tokens });
        }
        let max_rows = self.options.max_rows;
        if leaves > max_rows as usize {
            let rows = leaves;
            return Err(CudaModelError::Rows { rows, max_rows }.into());
        }
        self.check_tokens(tokens)
    }

    pub(super) fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let vocabulary = self.config().vocabulary as usize;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(ModelError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Checks a path of `tokens` tokens.
    pub(super) fn check_context(&self, tokens: u64) -> Result<(), ModelError> {
        let context = self.config().context as usize;
        if tokens > context as u64 {
            return Err(ModelError::Context { tokens, context });
        }
        Ok(())
    }
}

fn schedule(config: PlanConfig) -> Result<Schedule, CudaModelError> {
    Ok(Schedule::new(config).map_err(CacheError::from)?)
}
