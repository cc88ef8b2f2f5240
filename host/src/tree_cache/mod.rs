//! The whole in one piece: a forest, its pages on a device, plans and attention.

mod config;
mod error;
mod paged;
mod plan;
mod rotary;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::AppendTarget;

pub use self::config::{CacheConfig, Device};
pub use self::error::CacheError;
pub use self::plan::{PlanUpdate, TreePlan};

use crate::attention::{Attend, AttentionParams, Backend, Counters, check_length};
use crate::cache::{CacheShape, KvElement};
use crate::plan::{Grouping, Patch, Plan, Planner};
use crate::tree::{DraftNode, NodeKey, TokenForest, TreeView, ViewScratch};

/// Numbers caches.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// A KV cache of token trees on one device.
///
/// Rows of K, V, queries and outputs that belong to several leaves are always in the order in which the
/// leaves were given. A step of decoding is [`TreeCache::step`] once, then for each layer
/// [`TreeCache::append`] and [`TreeCache::attend`].
#[derive(Debug)]
pub struct TreeCache {
    id: u64,
    config: CacheConfig,
    params: AttentionParams,
    forest: TokenForest,
    backend: Box<dyn Backend>,
    planners: Vec<Planner>,
    view: TreeView,
    view_scratch: ViewScratch,
    targets: Vec<AppendTarget>,
    positions: Vec<u32>,
    dirty: Vec<Range<u32>>,
}

impl TreeCache {
    /// An empty cache on `device`.
    ///
    /// # Errors
    /// [`CacheError`], naming the field of `config` that is out of range, or the device's.
    pub fn new(device: &Device, config: CacheConfig) -> Result<Self, CacheError> {
        Self::with_backend(config, |shape| device.backend(shape))
    }

    /// An empty cache on a backend of your own, which `make` makes of the shape that follows from `config`.
    ///
    /// # Errors
    /// [`CacheError`], naming the field of `config` that is out of range or more than the backend takes, or that of
    /// `make`.
    pub fn with_backend(
        config: CacheConfig,
        make: impl FnOnce(CacheShape) -> Result<Box<dyn Backend>, CacheError>,
    ) -> Result<Self, CacheError> {
        let (shape, pool) = config.resolve()?;
        let backend = make(shape)?;
        let found = *backend.shape();
        if found != shape {
            let expected = shape;
            return Err(CacheError::BackendShape { found, expected });
        }
        if config.group_size() > backend.max_group_size() {
            return Err(CacheError::TooManyHeads {
                q_heads: config.q_heads,
                kv_heads: config.kv_heads,
                most: u64::from(config.kv_heads) * u64::from(backend.max_group_size()),
            });
        }
        Ok(Self {
            id: next_id(),
            params: config.params(),
            config,
            forest: TokenForest::new(pool),
            backend,
            planners: Vec::new(),
            view: TreeView::default(),
            view_scratch: ViewScratch::default(),
            targets: Vec::new(),
            positions: Vec::new(),
            dirty: Vec::new(),
        })
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

    /// Starts a tree with a root of `length` tokens: a prompt, whose K and V go in by
    /// [`TreeCache::append_tokens`].
    ///
    /// # Errors
    /// Those of [`TokenForest::insert_root`].
    pub fn insert_root(&mut self, length: u32) -> Result<NodeKey, CacheError> {
        Ok(self.forest.insert_root(length)?)
    }

    /// Gives `node` `n` more children, each empty, and seals it. Nothing is copied.
    ///
    /// # Errors
    /// Those of [`TokenForest::fork`].
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, CacheError> {
        Ok(self.forest.fork(node, n)?)
    }

    /// Adds `k` tokens to each of `leaves`, or to none. [`TreeCache::step`] does it for a plan's.
    ///
    /// # Errors
    /// Those of [`TokenForest::extend`].
    pub fn extend(&mut self, leaves: &[NodeKey], k: u32) -> Result<(), CacheError> {
        self.forest.extend(leaves, k)?;
        Ok(())
    }

    /// Takes the last `k` tokens of each of `leaves` away, or of none: undoes [`TreeCache::extend`].
    ///
    /// # Errors
    /// Those of [`TokenForest::shrink`].
    pub fn shrink(&mut self, leaves: &[NodeKey], k: u32) -> Result<(), CacheError> {
        self.forest.shrink(leaves, k)?;
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
        Ok(self.forest.insert_draft(trunk, draft)?)
    }

    /// Ends the draft of `trunk`: tokens along `path` join the trunk, K and V with them; everything
    /// else of the draft is dropped.
    ///
    /// # Errors
    /// Those of [`TokenForest::accept`].
    pub fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), CacheError> {
        let moves = self.forest.accept(trunk, path)?;
        Ok(self.backend.copy(&moves)?)
    }

    /// Makes one node of `node` and the only children below it, K and V with them; `node`'s key stays.
    ///
    /// # Errors
    /// Those of [`TokenForest::merge_chain`].
    pub fn merge_chain(&mut self, node: NodeKey) -> Result<(), CacheError> {
        let moves = self.forest.merge_chain(node)?;
        Ok(self.backend.copy(&moves)?)
    }

    /// Removes `node` and everything below it; the pages that came free.
    ///
    /// # Errors
    /// Those of [`TokenForest::prune`].
    pub fn prune(&mut self, node: NodeKey) -> Result<u32, CacheError> {
        Ok(self.forest.prune(node)?)
    }

    /// Plans one query at each of `leaves`, which may be any nodes: it sees its node's tokens and those
    /// of all ancestors.
    ///
    /// # Errors
    /// Those of [`TokenForest::view`] and [`Planner::plan`].
    pub fn plan(&mut self, leaves: &[NodeKey], grouping: Grouping) -> Result<TreePlan, CacheError> {
        let mut plan = TreePlan {
            cache: self.id,
            grouping,
            leaves: leaves.to_vec(),
            plan: Plan::empty(),
            cursor: self.forest.growth_cursor(),
            targets: Vec::new(),
        };
        self.replan(&mut plan)?;
        Ok(plan)
    }

    /// Brings `plan` up to date with the forest, in time proportional to the pages added if nothing but
    /// growth has happened.
    ///
    /// # Errors
    /// [`CacheError::ForeignPlan`], or those of [`TreeCache::plan`] when it has to be made anew: for
    /// example because one of its leaves was pruned.
    pub fn update(&mut self, plan: &mut TreePlan) -> Result<PlanUpdate, CacheError> {
        self.check_ours(plan)?;
        let growth = self.forest.growth_since(plan.cursor);
        if growth.is_some_and(<[_]>::is_empty) {
            return Ok(PlanUpdate::Unchanged);
        }
        let patched = growth.map(|growth| plan.plan.patch(growth, &mut self.dirty));
        if patched == Some(Patch::Patched) {
            plan.cursor = self.forest.growth_cursor();
            return Ok(PlanUpdate::Patched);
        }
        self.replan(plan)?;
        Ok(PlanUpdate::Replanned)
    }

    /// Adds a token to each of the plan's leaves and brings the plan up to date: the start of a decode
    /// step.
    ///
    /// # Errors
    /// Those of [`TokenForest::extend`] and [`TreeCache::update`].
    pub fn step(&mut self, plan: &mut TreePlan) -> Result<PlanUpdate, CacheError> {
        self.check_ours(plan)?;
        self.forest.extend(&plan.leaves, 1)?;
        self.update(plan)
    }

    /// Writes K and V of the last token of each of the plan's leaves, both
    /// `[leaves, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`CacheError::StalePlan`], [`CacheError::ForeignPlan`], [`CacheError::NoToken`], or those of
    /// [`Backend::append`].
    pub fn append<T: KvElement>(
        &mut self,
        layer: u32,
        plan: &TreePlan,
        k: &[T],
        v: &[T],
    ) -> Result<(), CacheError> {
        self.check_fresh(plan)?;
        plan.check_targets(&self.forest)?;
        let counters = counters(&self.forest);
        let (k, v) = (T::elements(k), T::elements(v));
        Ok(self.backend.append(layer, &plan.targets, counters, k, v)?)
    }

    /// Writes K and V of tokens `tokens` of `node`, both `[tokens, kv_heads, head_dim]`: a prefill, or
    /// the tokens of a draft node.
    ///
    /// # Errors
    /// Those of [`TokenForest::append_targets`] and [`Backend::append`].
    pub fn append_tokens<T: KvElement>(
        &mut self,
        layer: u32,
        node: NodeKey,
        tokens: Range<u32>,
        k: &[T],
        v: &[T],
    ) -> Result<(), CacheError> {
        self.targets.clear();
        self.forest
            .append_targets(node, tokens, &mut self.targets)?;
        let counters = counters(&self.forest);
        let (k, v) = (T::elements(k), T::elements(v));
        Ok(self.backend.append(layer, &self.targets, counters, k, v)?)
    }

    /// Attention of one layer: `q` and `out` are `[leaves, q_heads, head_dim]`. `out` is zero for a
    /// query that sees no token.
    ///
    /// # Errors
    /// [`CacheError::StalePlan`], [`CacheError::ForeignPlan`], or those of [`Backend::attend`].
    pub fn attend<T: KvElement>(
        &mut self,
        layer: u32,
        plan: &TreePlan,
        q: &[T],
        out: &mut [T],
    ) -> Result<(), CacheError> {
        self.attend_to(layer, plan, q, out, None)
    }

    /// As [`TreeCache::attend`], with `lse`, `[leaves, q_heads]`: the natural logarithm of the sum of
    /// `exp(logit)`, -inf for a query that sees no token.
    ///
    /// # Errors
    /// Those of [`TreeCache::attend`].
    pub fn attend_with_lse<T: KvElement>(
        &mut self,
        layer: u32,
        plan: &TreePlan,
        q: &[T],
        out: &mut [T],
        lse: &mut [f32],
    ) -> Result<(), CacheError> {
        self.attend_to(layer, plan, q, out, Some(lse))
    }

    fn attend_to<T: KvElement>(
        &mut self,
        layer: u32,
        plan: &TreePlan,
        q: &[T],
        out: &mut [T],
        lse: Option<&mut [f32]>,
    ) -> Result<(), CacheError> {
        self.check_fresh(plan)?;
        let heads = plan.leaves.len() * self.config.q_heads as usize;
        let elements = heads * self.config.head_dim as usize;
        let shape = "[leaves, q_heads, head_dim]";
        check_length("q", q.len(), elements, shape)?;
        check_length("out", out.len(), elements, shape)?;
        if let Some(lse) = &lse {
            check_length("lse", lse.len(), heads, "[leaves, q_heads]")?;
        }
        Ok(self.backend.attend(Attend {
            layer,
            plan: &plan.plan,
            counters: counters(&self.forest),
            q: T::elements(q),
            out: T::elements_mut(out),
            lse,
            params: self.params,
        })?)
    }

    fn check_ours(&self, plan: &TreePlan) -> Result<(), CacheError> {
        if plan.cache != self.id {
            return Err(CacheError::ForeignPlan);
        }
        Ok(())
    }

    fn check_fresh(&self, plan: &TreePlan) -> Result<(), CacheError> {
        self.check_ours(plan)?;
        let change = match self.forest.growth_since(plan.cursor) {
            Some([]) => return Ok(()),
            Some(_) => "a node grew into a new page",
            None => "nodes were added or removed",
        };
        Err(CacheError::StalePlan { change })
    }

    /// Plans the plan's leaves from scratch; on an error the plan stays out of date.
    fn replan(&mut self, plan: &mut TreePlan) -> Result<(), CacheError> {
        self.forest
            .view_into(&plan.leaves, &mut self.view_scratch, &mut self.view)?;
        let of_grouping = |planner: &Planner| planner.config().grouping == plan.grouping;
        let at = match self.planners.iter().position(of_grouping) {
            Some(at) => at,
            None => {
                let group_size = self.config.group_size();
                let config = self.backend.plan_config(plan.grouping, group_size);
                self.planners.push(Planner::new(config)?);
                self.planners.len() - 1
            }
        };
        self.planners[at].plan_into(&self.view, &mut plan.plan)?;
        plan.set_targets(&self.forest)?;
        plan.cursor = self.forest.growth_cursor();
        Ok(())
    }
}

fn counters(forest: &TokenForest) -> Counters<'_> {
    Counters {
        lengths: forest.lengths(),
        tail_pages: forest.tail_pages(),
    }
}
