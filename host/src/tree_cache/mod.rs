//! The whole in one piece: a forest, its pages on a device, plans and attention.

mod batch;
mod builder;
mod capture;
mod compact;
mod config;
mod demoted;
mod error;
mod maintain;
mod paged;
mod prefix;
mod restore;
mod rows;
mod saved;
mod score;
mod seal;
mod step;
mod store;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS};

pub use self::batch::Batch;
pub use self::builder::CacheBuilder;
pub use self::capture::{StepGraph, StepRun};
pub use self::config::{CacheConfig, Device};
pub use self::demoted::{Demoted, RestoreFrom};
pub use self::error::CacheError;
pub use self::restore::Restored;
pub use self::rows::{Kv, Out, Rows, RowsMut};
pub use self::seal::FormatBytes;
pub use self::step::Step;
#[cfg(feature = "cuda")]
pub use self::step::{StepGpu, StepOptions};

use self::builder::Settings;

use crate::attention::{Attend, AttentionParams, Backend, Counters, Rotation, check_length};
use crate::cache::{KvElement, LayerMap, ShapeError};
use crate::format::KvFormat;
use crate::plan::{Grouping, Plan, Planner};
use crate::prefix::{PrefixError, PrefixIndex};
use crate::tree::{DraftNode, NodeKey, TokenForest, TreeView, ViewScratch};

/// Numbers caches.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// A KV cache of token trees on one device.
///
/// A tree begins with [`TreeCache::insert_root`] and branches by [`TreeCache::fork`]. New tokens come as a [`Batch`]:
/// [`TreeCache::batch`] once, then for each layer [`TreeCache::append`] and [`TreeCache::attend`], then
/// [`TreeCache::advance`] for the next tokens of the same nodes.
pub struct TreeCache {
    id: u64,
    config: CacheConfig,
    layer_map: Option<LayerMap>,
    identity: u64,
    grouping: Grouping,
    settings: Settings,
    /// What nodes become that are forked.
    sealed_format: KvFormat,
    params: AttentionParams,
    forest: TokenForest,
    prefix: PrefixIndex,
    backend: Box<dyn Backend>,
    planners: Vec<Planner>,
    view: TreeView,
    view_scratch: ViewScratch,
    /// Memory of the next plan.
    spare: Plan,
    targets: Vec<AppendTarget>,
    dirty: Vec<Range<u32>>,
    /// What scores there are.
    scored: Option<score::Scored>,
    score_plans: score::ScorePlans,
    /// The extent without memory that the backend was told to prepare.
    prepared: Option<u32>,
}

impl std::fmt::Debug for TreeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("TreeCache");
        fields.field("config", &self.config);
        fields.field("backend", &self.backend.name());
        fields.finish_non_exhaustive()
    }
}

impl TreeCache {
    /// A cache to be made on `device`.
    pub fn builder(device: &Device) -> CacheBuilder {
        CacheBuilder::new(device)
    }

    /// What the cache was made with.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }
    /// The trees: lengths, parents, pages, and the pool's counters.
    pub fn forest(&self) -> &TokenForest {
        &self.forest
    }
    /// The device's side.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
    /// The GPU's side: its stream and its pages; `None` on the CPU.
    #[cfg(feature = "cuda")]
    pub fn cuda(&self) -> Option<&crate::cuda::CudaBackend> {
        let backend: &dyn std::any::Any = &*self.backend;
        backend.downcast_ref()
    }

    /// Starts a tree: an empty root, to which [`TreeCache::batch`] adds a prompt.
    ///
    /// # Errors
    /// Those of [`TokenForest::insert_root`].
    pub fn insert_root(&mut self) -> Result<NodeKey, CacheError> {
        Ok(self.forest.insert_root(0)?)
    }

    /// Gives `node` `n` more children, each empty, and seals it. Nothing is copied.
    ///
    /// # Errors
    /// Those of [`TokenForest::fork`].
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, CacheError> {
        let children = self.forest.fork(node, n)?;
        self.seal_forked(node)?;
        Ok(children)
    }

    /// Adds `k` tokens to each of `leaves`, or to none, whose K and V come otherwise than by a batch: by
    /// [`TreeCache::import`].
    ///
    /// # Errors
    /// Those of [`TokenForest::extend`].
    pub fn extend(&mut self, leaves: &[NodeKey], k: u32) -> Result<(), CacheError> {
        self.with_room(|forest| forest.extend(leaves, k))?;
        Ok(())
    }

    /// How batches are grouped that are made from now on.
    pub fn set_grouping(&mut self, grouping: Grouping) {
        self.grouping = grouping;
    }

    /// Takes the last `k` tokens of each of `leaves` away, or of none: undoes [`TreeCache::extend`].
    ///
    /// # Errors
    /// Those of [`TokenForest::shrink`].
    pub fn shrink(&mut self, leaves: &[NodeKey], k: u32) -> Result<(), CacheError> {
        self.forest.shrink(leaves, k)?;
        self.settle();
        Ok(())
    }

    /// Puts a draft tree below `trunk`; a key for each of `draft`.
    ///
    /// # Errors
    /// Those of [`TokenForest::insert_draft`].
    pub fn insert_draft(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftNode],
    ) -> Result<Vec<NodeKey>, CacheError> {
        self.with_room(|forest| forest.insert_draft(trunk, draft))
    }

    /// Adds a node of one token below each of `parents`, each `trunk` or a node of its draft: see
    /// [`TokenForest::grow_draft`].
    ///
    /// # Errors
    /// Those of [`TokenForest::grow_draft`].
    pub fn grow_draft(
        &mut self,
        trunk: NodeKey,
        parents: &[NodeKey],
    ) -> Result<Vec<NodeKey>, CacheError> {
        self.with_room(|forest| forest.grow_draft(trunk, parents))
    }

    /// Takes `leaves` from their drafts, and what nothing is below then: see [`TokenForest::prune_draft`]. The pages
    /// that came free.
    ///
    /// # Errors
    /// Those of [`TokenForest::prune_draft`].
    pub fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, CacheError> {
        let freed = self.forest.prune_draft(leaves)?;
        self.settle();
        Ok(freed)
    }

    /// Moves the tokens of the draft of `trunk` together, depth first, so that they lie on as few pages as can be and
    /// neighbours see few: see [`TokenForest::draft_use`]. It takes free pages for all of its tokens for as long as it
    /// lasts. Keys stay; batches made before are out of date.
    ///
    /// # Errors
    /// [`ForestError::NoDraft`](crate::tree::ForestError::NoDraft), out of pages, and the device's: then the draft is as
    /// it was.
    pub fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), CacheError> {
        let pages = self.forest.draft_use(trunk)?.tokens.div_ceil(PAGE_TOKENS);
        if self.forest.pool().ready() < pages {
            self.provide(pages.into())?;
        }
        let moves = self.forest.gather_moves(trunk)?;
        self.backend.copy_apart(&moves)?;
        self.forest.gathered(trunk);
        self.settle();
        Ok(())
    }

    /// Ends the draft of `trunk`: tokens along `path` join the trunk, K and V with them; everything
    /// else of the draft is dropped.
    ///
    /// # Errors
    /// Those of [`TokenForest::accept`], and the device's: then the draft is as it was.
    pub fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), CacheError> {
        let moves = self.forest.accept_moves(trunk, path)?;
        self.backend.copy(&moves)?;
        self.forest.accept_moved(trunk, path);
        self.settle();
        Ok(())
    }

    /// Makes one node of `node` and the only children below it, K and V with them; `node`'s key stays. Their pages that
    /// are of another format than the native one become native before, which takes as many free pages; `node`'s own stay.
    ///
    /// # Errors
    /// Those of [`TokenForest::merge_chain`], [`PrefixError::Indexed`] for a sealed prefix, and the
    /// device's: then the chain is as it was.
    pub fn merge_chain(&mut self, node: NodeKey) -> Result<(), CacheError> {
        if self.prefix.contains(node) {
            return Err(PrefixError::Indexed { node }.into());
        }
        self.unseal_below(node)?;
        let chain = self.forest.chain_moves(node)?;
        self.backend.copy(&chain.moves)?;
        self.forest.chain_moved(node, chain);
        self.settle();
        Ok(())
    }

    /// Removes `node` and everything below it; the pages that came free.
    ///
    /// # Errors
    /// Those of [`TokenForest::prune`]; [`PrefixError::Pinned`] for a sealed prefix that somebody has pinned.
    pub fn prune(&mut self, node: NodeKey) -> Result<u32, CacheError> {
        let freed = self.prefix.prune(&mut self.forest, node)?;
        self.settle();
        Ok(freed)
    }

    /// Writes K and V of the batch's tokens of one layer, `[rows, kv_heads, head_dim]`; keys rotated, if the table is
    /// given.
    ///
    /// # Errors
    /// [`CacheError::StaleBatch`], [`CacheError::ForeignBatch`], [`CacheError::SharedLayer`], or the backend's: a wrong
    /// length or element type, rows on a device that is not the cache's, a layer or a position that is not there.
    pub fn append<T: KvElement>(
        &mut self,
        layer: u32,
        batch: &Batch,
        kv: Kv<'_, T>,
    ) -> Result<(), CacheError> {
        self.check_fresh(batch)?;
        batch.check_native(&self.forest)?;
        let layer = self.written_plane(layer)?;
        let (targets, counters) = (batch.targets(), counters(&self.forest));
        let (k, v) = (kv.k.elements(), kv.v.elements());
        let backend = &mut self.backend;
        match kv.rope {
            None => backend.append(layer, targets, counters, k, v)?,
            Some(table) => {
                let positions = batch.positions();
                let rotation = Rotation { table, positions };
                backend.append_rotated(layer, targets, counters, k, v, rotation)?;
            }
        }
        Ok(())
    }

    /// Attention of one layer: `q` and `out` are `[rows, q_heads, head_dim]`, in the order of the batch's rows. With
    /// rows in the host's memory the results are there when this returns; with device rows the work is enqueued.
    ///
    /// # Errors
    /// [`CacheError::StaleBatch`], [`CacheError::ForeignBatch`], or the backend's.
    pub fn attend<'a, T: KvElement>(
        &mut self,
        layer: u32,
        batch: &Batch,
        q: impl Into<Rows<'a, T>>,
        out: impl Into<Out<'a, T>>,
    ) -> Result<(), CacheError> {
        self.check_fresh(batch)?;
        let layer = self.plane(layer)?;
        let (q, out) = (q.into().elements(), out.into());
        let lse = out.lse.map(RowsMut::elements);
        let out = out.out.elements();
        let heads = batch.rows() * self.config.q_heads as usize;
        let elements = heads * self.config.head_dim as usize;
        let shape = "[rows, q_heads, head_dim]";
        check_length("q", q.len(), elements, shape)?;
        check_length("out", out.len(), elements, shape)?;
        if let Some(lse) = &lse {
            check_length("lse", lse.len(), heads, "[rows, q_heads]")?;
        }
        Ok(self.backend.attend(Attend {
            layer,
            plan: batch.plan(),
            counters: counters(&self.forest),
            q,
            out,
            lse,
            params: self.params,
        })?)
    }

    /// Which layers read the keys and values of others; `None` if none does.
    pub fn layer_map(&self) -> Option<&LayerMap> {
        self.layer_map.as_ref()
    }

    /// Where the backend has the keys and values that `layer` reads.
    fn plane(&self, layer: u32) -> Result<u32, ShapeError> {
        match &self.layer_map {
            Some(map) => map.plane(layer),
            // The backend checks it.
            None => Ok(layer),
        }
    }

    /// As [`Self::plane`], of a layer that has some of its own.
    fn written_plane(&self, layer: u32) -> Result<u32, CacheError> {
        let plane = self.plane(layer)?;
        match &self.layer_map {
            Some(map) if !map.is_own(layer) => {
                let of = map.source(layer);
                Err(CacheError::SharedLayer { layer, of })
            }
            _ => Ok(plane),
        }
    }
}

fn counters(forest: &TokenForest) -> Counters<'_> {
    Counters {
        lengths: forest.lengths(),
        tail_pages: forest.tail_pages(),
        directory: forest.directory(),
        residues: forest.residues(),
    }
}
