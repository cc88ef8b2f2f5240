//! Scores of tokens, and who keeps them right while trees change.

use std::collections::{BTreeSet, HashMap};

use kernels_gpu::abi::{PAGE_TOKENS, RowSource, RowTarget};

use super::{Batch, CacheError, Rows, TreeCache, counters};
use crate::attention::{Backend, BackendError, Reduce, Score};
use crate::cache::{KvElement, PageId};
#[cfg(feature = "cuda")]
use crate::cuda::ScoreCall;
use crate::plan::{Plan, Planner};
use crate::retain::Observe;
use crate::tree::{NodeKey, TokenForest};

const TOKENS: usize = PAGE_TOKENS as usize;

/// What the planes of scores hold, and how far.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) reduce: Reduce,
    /// Of nodes whose queries were scored, how many tokens the last of those saw.
    until: HashMap<NodeKey, u32>,
}

/// The plan of a batch's score passes, where it is not that of attention.
#[derive(Debug, Default)]
pub(super) struct ScorePlans {
    planner: Option<Planner>,
    plan: Plan,
    /// Number of the batch's plan.
    of: u64,
    /// What the last score pass was asked.
    pub(super) observed: Option<Observe>,
}

impl ScorePlans {
    /// The one made last, if there is one, else that of attention.
    pub(super) fn plan<'a>(&'a self, batch: &'a Batch) -> &'a Plan {
        if self.of == batch.plan().number() { &self.plan } else { batch.plan() }
    }

    /// What a captured step has to bring.
    #[cfg(feature = "cuda")]
    pub(super) fn call<'a>(&'a self, batch: &'a Batch, visible: &'a [u32]) -> ScoreCall<'a> {
        ScoreCall { plan: self.plan(batch), visible }
    }
}

impl TreeCache {
    /// Scores all tokens that the batch's queries see, of one layer: for policies ([`crate::retain`]). To be called after
    /// [`TreeCache::attend`], with the same `q`, `[rows, q_heads, head_dim]`, and the LSE that it gave, `[rows, q_heads]`;
    /// it reads K once more. Of each node's rows the last [`Observe::window`] count.
    ///
    /// Scores stay with tokens when nodes are forked, cut or compacted, so a new branch goes on with what those before
    /// made of its prefix. Tokens that are moved or come otherwise, by a merge of nodes, out of a draft, by import or from a
    /// file, begin with 0. Pages of formats other than the native one have no scores. Of layers that share keys and
    /// values the scores are shared too.
    ///
    /// # Errors
    /// Those of [`TreeCache::attend`]; [`CacheError::ScoreKind`] while the cache has scores of another kind;
    /// [`BackendError::Scores`] of a device without scores.
    pub fn score<'a, T: KvElement>(
        &mut self,
        layer: u32,
        batch: &Batch,
        observe: Observe,
        q: impl Into<Rows<'a, T>>,
        lse: impl Into<Rows<'a, f32>>,
    ) -> Result<(), CacheError> {
        self.begin_scores(batch, observe)?;
        let layer = self.plane(layer)?;
        self.backend.score(Score {
            layer,
            plan: self.score_plans.plan(batch),
            counters: counters(&self.forest),
            q: q.into().elements(),
            lse: lse.into().elements(),
            visible: &batch.visible(observe.window),
            reduce: observe.reduce,
            params: self.params,
        })?;
        self.score_plans.observed = Some(observe);
        self.note_scores(batch, observe)
    }

    /// The plan that score passes over `batch` go by: the batch's own, or one of the backend's for them.
    ///
    /// # Errors
    /// [`CacheError::StaleBatch`], [`CacheError::ForeignBatch`], the planner's.
    pub fn score_plan<'a>(&'a mut self, batch: &'a Batch) -> Result<&'a Plan, CacheError> {
        self.check_fresh(batch)?;
        let group_size = self.config.group_size();
        let planned = self.score_plans.of == batch.plan().number();
        if let Some(mut config) = self.backend.score_plan_config(group_size).filter(|_| !planned) {
            let planner = match &mut self.score_plans.planner {
                Some(planner) => planner,
                none => {
                    (self.settings)(&mut config);
                    none.insert(Planner::new(config)?)
                }
            };
            self.forest.view_tokens_into(batch.nodes(), &mut self.view_scratch, &mut self.view)?;
            self.score_plans.of = 0;
            planner.plan_scores_into(&self.view, &mut self.score_plans.plan)?;
            self.score_plans.of = batch.plan().number();
        }
        Ok(self.score_plans.plan(batch))
    }

    /// What comes before score passes over `batch`, in whichever layer.
    pub(super) fn begin_scores(
        &mut self,
        batch: &Batch,
        observe: Observe,
    ) -> Result<(), CacheError> {
        self.score_plan(batch)?;
        let held = self.scored.as_ref().map(|scored| scored.reduce);
        if let Some(held) = held.filter(|&held| held != observe.reduce) {
            return Err(CacheError::ScoreKind { held, asked: observe.reduce });
        }
        Ok(self.clear_fresh()?)
    }

    /// Remembers that the batch's nodes were scored.
    pub(super) fn note_scores(
        &mut self,
        batch: &Batch,
        observe: Observe,
    ) -> Result<(), CacheError> {
        let scored = self.scored.get_or_insert_with(|| {
            self.forest.pool_mut().watch_fresh(true);
            Scored { reduce: observe.reduce, until: HashMap::new() }
        });
        Ok(scored.note(&self.forest, batch)?)
    }

    /// Drops all scores: they may be of another kind then.
    ///
    /// # Errors
    /// The device's.
    pub fn forget_scores(&mut self) -> Result<(), CacheError> {
        if self.scored.is_none() {
            return Ok(());
        }
        let pages: Vec<PageId> = (0..self.backend.shape().pages).collect();
        self.backend.clear_scores(&pages)?;
        self.forest.pool_mut().watch_fresh(false);
        self.scored = None;
        Ok(())
    }

    /// The scores of a node's rows of one layer and KV head, as bits of what [`Reduce`] says: of its compacted rows, then
    /// of the tokens that fill further pages. `None` before the first score.
    ///
    /// # Errors
    /// A layer or KV head that is not there;
    /// [`ForestError::Draft`](crate::tree::ForestError::Draft),
    /// [`ForestError::OtherFormat`](crate::tree::ForestError::OtherFormat); the device's.
    pub fn scores(
        &mut self,
        node: NodeKey,
        layer: u32,
        kv_head: u32,
    ) -> Result<Option<Vec<u32>>, CacheError> {
        let layer = self.plane(layer)?;
        let shape = *self.backend.shape();
        shape.check_layer(layer)?;
        crate::cache::in_range("kv_head + 1", u64::from(kv_head) + 1, shape.kv_heads.into())?;
        let places = self.row_places(node, (layer * shape.kv_heads + kv_head) as usize)?;
        if self.scored.is_none() {
            return Ok(None);
        }
        self.clear_fresh()?;
        read(&mut *self.backend, layer, &places).map(Some).map_err(CacheError::from)
    }

    /// Cell and token of each row that a head of a node has in full pages.
    pub(super) fn row_places(
        &self,
        node: NodeKey,
        head: usize,
    ) -> Result<Vec<(u32, u32)>, CacheError> {
        let length = self.forest.length(node)?;
        let tokens = length - length % PAGE_TOKENS;
        let rows = self.forest.node_rows(node, tokens)?;
        let kv_heads = self.backend.shape().kv_heads;
        let count = rows.count(head, tokens);
        Ok((0..count).map(|row| rows.place(head, row, kv_heads)).collect())
    }

    /// Makes the scores of pages 0 that have changed hands.
    pub(super) fn clear_fresh(&mut self) -> Result<(), BackendError> {
        let pages = self.forest.pool_mut().take_fresh();
        if pages.is_empty() {
            return Ok(());
        }
        let cleared = self.backend.clear_scores(&pages);
        if cleared.is_err() {
            self.forest.pool_mut().put_fresh(&pages);
        }
        cleared
    }

    /// Moves scores with whole pages that were moved.
    pub(super) fn move_page_scores(
        &mut self,
        pages: &[(PageId, PageId)],
    ) -> Result<(), BackendError> {
        if self.scored.is_none() {
            return Ok(());
        }
        self.clear_fresh()?;
        let shape = *self.backend.shape();
        let cells = |pages: &mut dyn Iterator<Item = PageId>| -> Vec<u32> {
            pages.flat_map(|page| page * shape.kv_heads..(page + 1) * shape.kv_heads).collect()
        };
        let from = cells(&mut pages.iter().map(|moved| moved.0));
        let to = cells(&mut pages.iter().map(|moved| moved.1));
        let mut scores = vec![0; from.len() * TOKENS];
        for layer in 0..shape.layers {
            self.backend.read_scores(layer, &from, &mut scores)?;
            self.backend.write_scores(layer, &to, &scores)?;
        }
        Ok(())
    }
}

impl Scored {
    /// Remembers how far the batch's nodes were scored.
    fn note(
        &mut self,
        forest: &TokenForest,
        batch: &Batch,
    ) -> Result<(), crate::tree::ForestError> {
        for &(node, _) in batch.nodes() {
            let sees = forest.context_length(node)?.min(u64::from(u32::MAX)) as u32;
            self.until.insert(node, sees);
        }
        // Nodes come and go.
        if self.until.len() > 2 * forest.node_count() + 64 {
            self.until.retain(|&node, _| forest.length(node).is_ok());
        }
        Ok(())
    }

    /// How many tokens the last scored query of a node saw, if one was.
    pub(super) fn until(&self, node: NodeKey) -> Option<u32> {
        self.until.get(&node).copied()
    }
}

/// The scores at `(cell, token)` of one layer.
pub(super) fn read(
    backend: &mut dyn Backend,
    layer: u32,
    places: &[(u32, u32)],
) -> Result<Vec<u32>, BackendError> {
    let cells: BTreeSet<u32> = places.iter().map(|&(cell, _)| cell).collect();
    let cells: Vec<u32> = cells.into_iter().collect();
    let mut scores = vec![0; cells.len() * TOKENS];
    backend.read_scores(layer, &cells, &mut scores)?;
    let at = |&(cell, token): &(u32, u32)| {
        let cell = cells.partition_point(|&other| other < cell);
        scores[cell * TOKENS + token as usize]
    };
    Ok(places.iter().map(at).collect())
}

/// Gives rows that were made of others the scores of those: the sum of sums, else the largest.
pub(super) fn move_rows(
    backend: &mut dyn Backend,
    reduce: Reduce,
    layer: u32,
    targets: &[RowTarget],
    sources: &[RowSource],
) -> Result<(), BackendError> {
    let places: Vec<_> = sources.iter().map(|source| (source.cell, source.token)).collect();
    let from = read(backend, layer, &places)?;
    let (mut cells, mut scores) = (Vec::new(), Vec::<u32>::new());
    let mut begin = 0;
    for target in targets {
        let parts = &from[begin..target.end as usize];
        begin = target.end as usize;
        // Rows of a cell follow one another.
        if cells.last() != Some(&target.cell) {
            cells.push(target.cell);
            scores.resize(scores.len() + TOKENS, 0);
        }
        let first = scores.len() - TOKENS;
        scores[first + target.token as usize] = match reduce {
            Reduce::Sum => parts.iter().map(|&bits| f32::from_bits(bits)).sum::<f32>().to_bits(),
            // Of floats that are not negative the larger has the larger bits.
            Reduce::Last | Reduce::Max => parts.iter().copied().max().unwrap_or(0),
        };
    }
    backend.write_scores(layer, &cells, &scores)
}
