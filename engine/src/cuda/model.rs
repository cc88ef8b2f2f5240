//! The model on a device: its forest and pages, and how a pass gets there.

use deft::cache::{DType, StoreBytes};
use deft::cuda::{CudaBackend, CudaDevice, DeviceBuffer, Stream};
use deft::plan::Grouping;
use deft::{Batch, NodeKey, StepGraph, TreeCache};

use super::buffers::Buffers;
use super::cublas::Cublas;
use super::forward::{Forward, Pass};
use super::ops::ModelOps;
use super::options::check_pages;
use super::ranks::DeviceRanks;
use super::rows::bucket;
use super::{CudaMemory, CudaModelError, CudaOptions, CudaWeights};
use crate::ranks::{Memory, Shard};
use crate::retain::Retaining;
use crate::{Communicator, LlamaConfig, ModelError, RankError, Traffic};

/// A language model on a GPU.
///
/// All work goes to one stream, in order; only what gives results to the host waits for it. A step's pass has a
/// fixed number of rows (a power of two, or a multiple of 8 and more), of which those without a token do nothing,
/// and is captured as a CUDA graph when it runs a second time.
#[derive(Debug)]
pub struct CudaModel {
    /// The graphs of each kind of pass; the kind that ran last at the end. They go before what they launch.
    pub(super) graphs: Vec<(Pass, StepGraph)>,
    pub(super) forward: Forward,
    /// The last step's or draft's.
    pub(super) batch: Option<Batch>,
    pub(super) options: CudaOptions,
    pub(super) traffic: Traffic,
    pub(super) retain: Retaining,
    /// The last field: what enqueues on its stream goes first.
    pub(super) cache: TreeCache,
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
        Self::new_rank(device, weights, options, Box::new(Memory::alone()))
    }

    /// One rank's model with its part of the weights. `ranks` is how the hosts talk: of NCCL's communicator, and of a
    /// device that hangs. All ranks run the same operations in the same order; [`Ranked`](crate::Ranked) sees to it.
    ///
    /// # Errors
    /// As [`CudaModel::new`]; a missing NCCL; weights of another rank.
    pub fn new_rank(
        device: &CudaDevice,
        weights: CudaWeights,
        options: CudaOptions,
        ranks: Box<dyn Communicator>,
    ) -> Result<Self, CudaModelError> {
        options.check(ranks.ranks())?;
        check_rank(weights.shard(), &*ranks)?;
        let config = weights.part();
        let kv_bytes = weights.shard().page_budget(options.kv_bytes, weights.dtype());
        check_pages(config, weights.dtype(), kv_bytes)?;
        let cache = TreeCache::builder(&device.clone().into())
            .layers(config.layers)
            .heads(config.q_heads, config.kv_heads, config.head_dim)
            .dtype(weights.dtype())
            .store(options.store(|bytes| weights.shard().page_budget(bytes, weights.dtype())))
            .prefix_bytes(weights.shard().page_budget(options.prefix_bytes, weights.dtype()))
            .identity(weights.identity()?)
            .grouping(options.grouping)
            .sealed_format(options.kv)
            .build()?;
        let stream = on_gpu(&cache).stream().raw();
        // SAFETY: the stream is that of the cache, the model's last field, so it outlives the handle.
        let blas = unsafe { Cublas::new(device, options.cublas.as_deref(), stream) }?;
        let table = config.rotary_table(config.positions(cache.forest().pool()))?;
        let rows = options.max_rows.max(options.prefill_rows);
        let retain = Retaining::new(options.retain.clone());
        let mut buffers =
            Buffers::new(device, config, &table, bucket(rows), bucket(options.max_rows))?;
        if retain.observe().is_some() {
            buffers.lse = Some(DeviceBuffer::uninitialized(
                device,
                "LSEs",
                (bucket(rows) * config.q_heads) as usize,
            )?);
        }
        let ranks = match ranks.ranks() {
            1 => None,
            _ => {
                let states = (config.hidden, weights.dtype());
                Some(DeviceRanks::join(device, ranks, &options, states)?)
            }
        };
        Ok(Self {
            forward: Forward {
                ops: ModelOps::new(device, weights.dtype(), config.head_dim)?,
                weights,
                blas,
                buffers,
                ranks,
            },
            batch: None,
            graphs: Vec::new(),
            options,
            traffic: Traffic::default(),
            retain,
            cache,
        })
    }

    /// The model's shape, of all ranks.
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
        self.gpu().stream()
    }
    /// Waits until the device is through, as long as the other ranks are there.
    ///
    /// # Errors
    /// [`CudaModelError`]: a failed device, or a rank that has died or hangs.
    pub fn synchronize(&self) -> Result<(), CudaModelError> {
        self.settle()?;
        Ok(self.stream().synchronize()?)
    }
    /// The cache's side of the device.
    pub(super) fn gpu(&self) -> &CudaBackend {
        on_gpu(&self.cache)
    }
    /// cuBLAS's version and file.
    pub fn cublas(&self) -> String {
        self.forward.blas.describe()
    }
    /// NCCL's version and file, where there are several ranks.
    pub fn nccl(&self) -> Option<String> {
        self.forward.ranks.as_ref().map(DeviceRanks::describe)
    }
    /// CUDA graphs that were captured so far and are in use.
    pub fn graphs(&self) -> usize {
        self.graphs.iter().map(|(_, graph)| graph.graphs()).sum()
    }

    /// What the pages take.
    pub fn store_bytes(&mut self) -> StoreBytes {
        self.cache.store_bytes()
    }

    /// Groups queries and KV in another way from now on.
    pub fn set_grouping(&mut self, grouping: Grouping) {
        self.batch = None;
        self.options.grouping = grouping;
    }

    /// Device memory that the model takes now.
    pub fn memory(&self) -> CudaMemory {
        let cache = self.gpu().cache();
        let plans: usize = self.graphs.iter().map(|(_, graph)| graph.bytes()).sum();
        CudaMemory {
            weights: self.forward.weights.memory_bytes(),
            pages: 2 * cache.pool().len() as u64,
            buffers: self.forward.memory_bytes() + 8 * u64::from(cache.slots()),
            plans: plans as u64,
            cublas: self.forward.blas.memory_bytes(),
        }
    }

    /// Tokens from the root to the end of `node`.
    pub(super) fn tokens_of(&self, node: NodeKey) -> Result<u64, ModelError> {
        Ok(self.cache.forest().context_length(node)?)
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

/// Whether a rank has its own part of the weights.
fn check_rank(shard: &Shard, ranks: &dyn Communicator) -> Result<(), CudaModelError> {
    let [own, given] = [(ranks.rank(), ranks.ranks()), (shard.rank(), shard.ranks())]
        .map(|(rank, ranks)| format!("rank {rank} of {ranks}"));
    match own == given {
        true => Ok(()),
        false => Err(RankError::argument("weights", given, own).into()),
    }
}

pub(super) fn on_gpu(cache: &TreeCache) -> &CudaBackend {
    cache.cuda().expect("it was built for a GPU")
}
