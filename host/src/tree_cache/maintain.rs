//! Policies over all nodes.

use std::collections::HashMap;

use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;

use super::score::read;
use super::{CacheError, TreeCache};
use crate::attention::{Backend, BackendError, PagedTokens};
use crate::cache::{DType, KvElement, PagedOrder, PagedTable, PoolError};
use crate::format::KvFormat;
use crate::prefix::PrefixError;
use crate::retain::{Budget, Compaction, HeadCompaction, HeadView, Maintained, Retention};
use crate::tree::{ForestError, NodeKey};

/// A node is compacted if it has at most this part of its cells left: pages of one layer and KV head.
const REPACKED: (u64, u64) = (3, 4);

/// A node that a policy may compact.
struct Candidate {
    node: NodeKey,
    /// Its first token's position.
    first: u32,
    /// Tokens in full pages.
    tokens: u32,
    /// See [`HeadView::now`].
    now: u32,
}

/// How far a node's branches have come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Tokens of its path.
    end: u32,
    /// Tokens that its last scored query saw, or the last above it.
    until: u32,
    /// The least of that over its leaves that may go on.
    live: Option<u32>,
    /// The least over all leaves.
    all: Option<u32>,
}

impl TreeCache {
    /// Has `policy` choose what is kept, of every node, if the cache holds more than `budget`: between steps. Nodes of
    /// which at least a quarter goes, counted in pages of one layer and KV head, are compacted
    /// ([`TreeCache::compact_node`]); the others stay as they are, for half empty pages free nothing. So a cache may keep up
    /// to a third more than a policy chose, and the last page of a node, which is not full, always stays. Batches made
    /// before are out of date if a node was compacted.
    ///
    /// What attention reads follows the rows of each layer and head. Memory follows the layer that keeps most, for a page
    /// has room for all layers ([`Maintained::pages`]).
    ///
    /// The budget says what each node may keep, in proportion to what it has; policies that follow no budget
    /// ([`Corm`](crate::retain::Corm), [`Sinks`](crate::retain::Sinks), [`Merger`](crate::retain::Merger)) keep what they
    /// keep, and a budget of 0 asks them always. Drafts, nodes with pages of a format and prefixes that somebody has
    /// pinned are left alone; a policy that needs scores leaves a node alone below which there is a branch that was never scored.
    ///
    /// # Errors
    /// [`CacheError::ScoreKind`] if the cache's scores are not the policy's; those of
    /// [`TreeCache::compact_node`] but want of pages. Nodes compacted before stay so.
    pub fn maintain(
        &mut self,
        policy: &mut dyn Retention,
        budget: Budget,
    ) -> Result<Maintained, CacheError> {
        let scored = self.check_kind(policy)?;
        let mut done = Maintained::default();
        let Some(part) = self.over(budget)? else {
            return Ok(done);
        };
        self.clear_fresh()?;
        for candidate in self.candidates(scored)? {
            match self.maintain_node(policy, &candidate, part) {
                Ok(of) => done += of,
                Err(CacheError::Prefix(PrefixError::Pinned { .. })) => {}
                Err(error) if is_out_of_pages(&error) => done.refused += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// The part of what the cache holds that the budget allows; `None` if that is all of it.
    fn over(&self, budget: Budget) -> Result<Option<f64>, CacheError> {
        let (held, budget) = match budget {
            Budget::Bytes(budget) => {
                let pages = self.forest.pool().live() - self.forest.pool().slab_pages();
                ((u64::from(pages) * self.backend.stored().page_bytes()) as f64, budget as f64)
            }
            Budget::Tokens(budget) => (self.held_rows()?, budget as f64),
        };
        Ok((held > budget).then(|| budget / held))
    }

    /// Rows of all nodes, in the mean over layers and KV heads.
    fn held_rows(&self) -> Result<f64, CacheError> {
        let mut rows = 0.0;
        for node in self.forest.subtrees() {
            let compacted = self.forest.compacted_rows(node)?;
            let left: usize = compacted.iter().map(|head| head.positions.len()).sum();
            rows += left as f64 / compacted.len().max(1) as f64;
            rows += f64::from(self.forest.length(node)? - self.forest.compacted_tokens(node)?);
        }
        Ok(rows)
    }

    /// The nodes that a policy may compact, parents before their children; with `scored`, those of which all branches
    /// below were scored.
    fn candidates(&self, scored: bool) -> Result<Vec<Candidate>, CacheError> {
        let mut candidates = Vec::new();
        for (node, Progress { end, live, all, .. }) in self.progress(scored)? {
            let length = self.forest.length(node)?;
            let tokens = length - length % PAGE_TOKENS;
            let (format, _) = self.forest.format(node)?;
            let rows = matches!(format, KvFormat::Native | KvFormat::Compacted);
            let now = live.or(all).unwrap_or(0);
            if tokens > 0 && rows && now > 0 {
                candidates.push(Candidate { node, first: end - length, tokens, now });
            }
        }
        Ok(candidates)
    }

    /// How far each node's branches have come, parents before their children.
    fn progress(&self, scored: bool) -> Result<Vec<(NodeKey, Progress)>, CacheError> {
        let nodes: Vec<NodeKey> = self.forest.subtrees().collect();
        let at: HashMap<NodeKey, usize> = nodes.iter().copied().zip(0..).collect();
        let mut all: Vec<(NodeKey, Progress)> = Vec::with_capacity(nodes.len());
        for &node in &nodes {
            let above = self.forest.parent(node)?.map(|parent| all[at[&parent]].1);
            let above = above.unwrap_or_default();
            let end = above.end.saturating_add(self.forest.length(node)?);
            let until = match &self.scored {
                _ if !scored => end,
                Some(scored) => scored.until(node).unwrap_or(above.until),
                None => 0,
            };
            all.push((node, Progress { end, until, live: None, all: None }));
        }
        for index in (0..all.len()).rev() {
            let (node, mut progress) = all[index];
            if progress.all.is_none() {
                progress.all = Some(progress.until);
                progress.live = progress.all.filter(|_| self.forest.is_sealed(node) == Ok(false));
                all[index].1 = progress;
            }
            if let Some(parent) = self.forest.parent(node)? {
                let above = &mut all[at[&parent]].1;
                above.live = [above.live, progress.live].into_iter().flatten().min();
                above.all = [above.all, progress.all].into_iter().flatten().min();
            }
        }
        Ok(all)
    }

    /// What `policy` makes of a node's full pages if the budget leaves it the part `keep` of its rows; for
    /// [`TreeCache::compact_node`]. `None` for a node that [`TreeCache::maintain`] leaves alone.
    ///
    /// # Errors
    /// As [`TreeCache::maintain`]; [`ForestError::UnknownNode`].
    pub fn select(
        &mut self,
        policy: &mut dyn Retention,
        node: NodeKey,
        keep: f64,
    ) -> Result<Option<Compaction>, CacheError> {
        self.forest.length(node)?;
        let scored = self.check_kind(policy)?;
        self.clear_fresh()?;
        let candidates = self.candidates(scored)?;
        let candidate = candidates.iter().find(|candidate| candidate.node == node);
        candidate.map(|candidate| self.compaction(policy, candidate, keep)).transpose()
    }

    /// Whether the policy needs scores; those that are there are of its kind.
    fn check_kind(&self, policy: &dyn Retention) -> Result<bool, CacheError> {
        let asked = policy.observe().map(|observe| observe.reduce);
        let held = self.scored.as_ref().map(|scored| scored.reduce);
        match (asked, held) {
            (Some(asked), Some(held)) if asked != held => {
                Err(CacheError::ScoreKind { held, asked })
            }
            _ => Ok(asked.is_some()),
        }
    }

    /// Compacts a node if that pays.
    fn maintain_node(
        &mut self,
        policy: &mut dyn Retention,
        candidate: &Candidate,
        part: f64,
    ) -> Result<Maintained, CacheError> {
        let node = candidate.node;
        // What was compacted before may have taken prefixes below it from the index, and from the forest.
        if self.forest.length(node).is_err() {
            return Ok(Maintained::default());
        }
        let rows = self.forest.node_rows(node, candidate.tokens)?;
        let heads = self.backend.shape().layers * self.backend.shape().kv_heads;
        let before: Vec<u32> =
            (0..heads as usize).map(|head| rows.count(head, candidate.tokens)).collect();
        let compaction = self.compaction(policy, candidate, part)?;
        let after: Vec<u32> = compaction.heads.iter().map(|head| head.rows.len() as u32).collect();
        if cells(&after) * REPACKED.1 > cells(&before) * REPACKED.0 {
            return Ok(Maintained::default());
        }
        let pages = self.compact_node(node, &compaction)?;
        let sum = |rows: &[u32]| rows.iter().map(|&rows| u64::from(rows)).sum();
        let (rows_before, rows_after) = (sum(&before), sum(&after));
        Ok(Maintained { nodes: 1, pages, rows_before, rows_after, refused: 0 })
    }

    fn compaction(
        &mut self,
        policy: &mut dyn Retention,
        candidate: &Candidate,
        part: f64,
    ) -> Result<Compaction, CacheError> {
        let heads = self.backend.shape().layers * self.backend.shape().kv_heads;
        let mut compaction = Compaction { tokens: candidate.tokens, heads: Vec::new() };
        for head in 0..heads as usize {
            compaction.heads.push(self.select_head(policy, candidate, head, part)?);
        }
        Ok(compaction)
    }

    fn select_head(
        &mut self,
        policy: &mut dyn Retention,
        candidate: &Candidate,
        head: usize,
        part: f64,
    ) -> Result<HeadCompaction, CacheError> {
        let &Candidate { node, first, tokens, now } = candidate;
        let shape = *self.backend.shape();
        let (layer, kv_head) = (head as u32 / shape.kv_heads, head as u32 % shape.kv_heads);
        let places = self.row_places(node, head)?;
        let rows = self.forest.node_rows(node, tokens)?;
        let of_rows = (0..places.len() as u32).map(|row| rows.token(head, row));
        let (tokens, biases): (Vec<u32>, Vec<f32>) = of_rows.unzip();
        let positions: Vec<u32> = tokens.into_iter().map(|token| first + token).collect();
        let scores = match policy.observe() {
            Some(_) => read(&mut *self.backend, layer, &places)?,
            None => Vec::new(),
        };
        let keys = match policy.needs_keys() {
            true => keys(&mut *self.backend, layer, &places)?,
            false => Vec::new(),
        };
        let (positions, biases, scores, keys) = (&*positions, &*biases, &*scores, &*keys);
        let target = (places.len() as f64 * part) as u32;
        let view = HeadView { layer, kv_head, positions, biases, scores, keys, now, target };
        Ok(policy.select(&view))
    }
}

/// Cells of heads that have so many rows.
fn cells(rows: &[u32]) -> u64 {
    rows.iter().map(|rows| u64::from(rows.div_ceil(PAGE_TOKENS))).sum()
}

fn is_out_of_pages(error: &CacheError) -> bool {
    matches!(
        error,
        CacheError::Pool(PoolError::OutOfPages { .. })
            | CacheError::Forest(ForestError::Pool(PoolError::OutOfPages { .. }))
    )
}

/// Keys at `(cell, token)` of a layer: `[rows, head_dim]`.
fn keys(
    backend: &mut dyn Backend,
    layer: u32,
    places: &[(u32, u32)],
) -> Result<Vec<f32>, BackendError> {
    match backend.shape().dtype {
        DType::Bf16 => keys_of::<bf16>(backend, layer, places),
        DType::F16 => keys_of::<f16>(backend, layer, places),
        DType::F32 => keys_of::<f32>(backend, layer, places),
    }
}

fn keys_of<T: KvElement>(
    backend: &mut dyn Backend,
    layer: u32,
    rows: &[(u32, u32)],
) -> Result<Vec<f32>, BackendError> {
    let shape = *backend.shape();
    // A cell is a KV head's room in a page: its row comes with those of the page's other heads.
    let places = rows.iter().map(|&(cell, token)| cell / shape.kv_heads * PAGE_TOKENS + token);
    let places: Vec<u32> = places.collect();
    let [mut k, mut v] = [(); 2].map(|()| vec![T::default(); rows.len() * shape.row_elements()]);
    let page_size = rows.len().max(1) as u32;
    let table = PagedTable { order: PagedOrder::Nhd, page_size, pages: &[0] };
    let paged = PagedTokens { layer, places: &places, table };
    backend.export(paged, [T::elements_mut(&mut k), T::elements_mut(&mut v)])?;
    let dims = shape.head_dim as usize;
    let of_rows = rows.iter().zip(k.chunks_exact(shape.row_elements()));
    let of_rows = of_rows.flat_map(|(&(cell, _), heads)| {
        let slot = (cell % shape.kv_heads) as usize;
        heads[slot * dims..][..dims].iter().map(|element| element.to_f32())
    });
    Ok(of_rows.collect())
}
