//! A model on the CPU: weights as they are stored, K and V in f32.

#[cfg(test)]
mod faults;
mod forward;
mod layers;
mod matmul;
mod ops;
mod params;
mod retain;
mod saved;
mod tile;
mod timing;
mod tree;

use std::sync::Arc;

use deft::RotaryTable;
use deft::cache::{DType, LayerMap};
use deft::retain::Policy;
use deft::{Batch, CacheError, Device, Grouping, KvFormat, TreeCache};

pub use self::layers::AttentionRows;

use self::forward::Scratch;
use self::params::Params;
use crate::config::{ConfigError, LlamaConfig, Turn};
use crate::less::read_less;
use crate::ranks::{Communicator, Memory, RankError, Shard};
use crate::retain::{Retain, Retaining};
use crate::tree_model::Traffic;
use crate::weights::{Weights, WeightsError};

/// How a [`CpuModel`] is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuOptions {
    /// Bytes for K and V; of the rank with the most KV heads, if there are several.
    pub capacity_bytes: u64,
    /// Most bytes of them that prompts of the past hold, for later ones that begin alike: see
    /// [`CacheBuilder::prefix_bytes`](deft::CacheBuilder::prefix_bytes). 0 keeps none.
    pub prefix_bytes: u64,
    /// How attention is planned.
    pub grouping: Grouping,
    /// How the full pages of nodes are kept that are forked.
    pub kv: KvFormat,
    /// Which tokens are kept; `None` keeps all. On one rank, with [`CpuOptions::kv`] native.
    pub retain: Option<Retain>,
}

impl Default for CpuOptions {
    /// 512 MiB, nothing kept of prompts of the past, Flatten, pages in f32, and all tokens.
    fn default() -> Self {
        Self {
            capacity_bytes: 512 << 20,
            prefix_bytes: 0,
            grouping: Grouping::Flatten,
            kv: KvFormat::Native,
            retain: None,
        }
    }
}

/// Why a model could not be set up.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Its shape.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its ranks.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// Tokens are dropped in native pages only, and on one rank.
    #[error("policy {policy} with {what}: tokens are dropped on one rank, with KV format native")]
    Retain {
        /// The policy.
        policy: Policy,
        /// What it does not go with.
        what: String,
    },
    /// The threads of one of several ranks.
    #[error("there are no threads for this rank: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// A Llama-architecture model on the CPU, and the trees that it keeps K and V of.
///
/// [`TreeModel::traffic`](crate::TreeModel::traffic) counts K and V in whole groups of eight tokens a node. A
/// prompt's prefill counts alike in both numbers: no engine reads its K and V once a token.
#[derive(Debug)]
pub struct CpuModel {
    shard: Shard,
    /// The shape of what this rank computes.
    config: LlamaConfig,
    params: Params,
    options: CpuOptions,
    rotary: RotaryTable,
    /// For layers that turn by themselves.
    local_rotary: Option<RotaryTable>,
    cache: TreeCache,
    /// Of the last step; good as long as its leaves are stepped on.
    step: Option<Batch>,
    retain: Retaining,
    traffic: Traffic,
    scratch: Scratch,
    ranks: Box<dyn Communicator>,
    /// Of one of several ranks: one that waits for the others in a pool that it shares with them would keep them waiting.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl CpuModel {
    /// Reads all of `weights`; `progress` hears now and then how many parameters of how many have been
    /// read.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        weights: &Weights,
        options: CpuOptions,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let shard = Shard::all(weights.config());
        Self::load_shard(weights, options, (shard, Box::new(Memory::alone())), progress)
    }

    /// Reads one rank's part of `weights`. All ranks run the same operations in the same order; [`Ranked`](crate::Ranked)
    /// sees to it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load_rank(
        weights: &Weights,
        options: CpuOptions,
        ranks: Box<dyn Communicator>,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let shard = Shard::new(weights.config(), ranks.rank(), ranks.ranks())?;
        Self::load_shard(&shard.weights(weights), options, (shard, ranks), progress)
    }

    fn load_shard(
        weights: &Weights,
        options: CpuOptions,
        (shard, ranks): (Shard, Box<dyn Communicator>),
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        check_retain(&shard, &options)?;
        let config = weights.config().clone();
        let params = Params::load(weights, &shard, &mut progress)?;
        let mut cache = build_cache(&shard, &config, &params, &options, None)?;
        if let Some(Retain { policy: Policy::Less { weights: file, .. }, .. }) = &options.retain {
            cache.set_feature_map(Arc::new(read_less(file, &config)?))?;
        }
        let positions = config.positions(cache.forest().pool());
        let turns_itself = config.variant.turns.contains(&Turn::Local);
        Ok(Self {
            rotary: config.rotary_table(positions)?,
            local_rotary: turns_itself.then(|| config.local_rotary_table(positions)).transpose()?,
            retain: Retaining::new(options.retain.clone()),
            params,
            options,
            config,
            cache,
            step: None,
            traffic: Traffic::default(),
            scratch: Scratch::default(),
            pool: own_pool(shard.ranks())?,
            shard,
            ranks,
        })
    }

    /// The model's shape, of all ranks.
    pub fn config(&self) -> &LlamaConfig {
        self.shard.whole()
    }

    /// This rank's part of it.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The trees' keys and values.
    pub fn cache(&self) -> &TreeCache {
        &self.cache
    }

    /// How attention is planned from now on; results are the same up to rounding.
    pub fn set_grouping(&mut self, grouping: Grouping) {
        self.cache.set_grouping(grouping);
        self.step = None;
    }
}

/// Whether the policy goes with everything else.
fn check_retain(shard: &Shard, options: &CpuOptions) -> Result<(), LoadError> {
    let Some(Retain { policy, .. }) = &options.retain else {
        return Ok(());
    };
    let what = match (shard.ranks(), options.kv) {
        (1, KvFormat::Native) => return Ok(()),
        (1, format) => format!("KV format {format}"),
        (ranks, _) => format!("{ranks} ranks"),
    };
    Err(LoadError::Retain { policy: policy.clone(), what })
}

/// Threads for one of `ranks` ranks of a machine.
fn own_pool(ranks: u32) -> Result<Option<Arc<rayon::ThreadPool>>, LoadError> {
    if ranks == 1 {
        return Ok(None);
    }
    let threads = (rayon::current_num_threads() / ranks as usize).max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    Ok(Some(Arc::new(pool)))
}

/// An empty cache for a rank's part `config` of a model whose layers share as `map` says.
fn build_cache(
    shard: &Shard,
    config: &LlamaConfig,
    params: &Params,
    options: &CpuOptions,
    map: Option<LayerMap>,
) -> Result<TreeCache, CacheError> {
    let budget = |bytes| shard.page_budget(bytes, DType::F32);
    let mut cache = TreeCache::builder(&Device::cpu()).layers(config.layers);
    if let Some(map) = map {
        cache = cache.layer_map(map);
    }
    cache = cache
        .heads(config.q_heads, config.kv_heads, config.head_dim)
        .dtype(DType::F32)
        .capacity_bytes(budget(options.capacity_bytes))
        .prefix_bytes(budget(options.prefix_bytes))
        .identity(saved::identity(shard, params))
        .grouping(options.grouping)
        .sealed_format(options.kv);
    if let Some(scale) = config.variant.query_scale {
        cache = cache.scale(scale);
    }
    if let Some(cap) = config.variant.attention_cap {
        cache = cache.soft_cap(cap);
    }
    cache.build()
}
