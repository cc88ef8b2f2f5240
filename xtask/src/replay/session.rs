//! A trace on a real cache: the same tree for every grouping, each with a plan of its own.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deft::attention::reference::{ReferenceParams, attend_row};
use deft::plan::{HeadShape, IssuedIo, PaperIo, unique_kv_bytes};
use deft::tree::{TreeView, ViewScratch};
use deft::{CacheConfig, Device, Grouping, KvElement, NodeKey, PlanUpdate, TreeCache, TreePlan};
use kernels_gpu::abi::PAGE_TOKENS;

use super::check::{Expected, tolerances};
use super::data::{self, Kind};
use super::trace::{Accepted, Op, Step, Trace};

/// Rows, each a query and a head, that a sampled step compares with f64.
const CHECKED_ROWS: usize = 4;
/// Tokens whose K and V are written at once.
const CHUNK: u32 = 256;
/// Times that attention is run on a sampled step; the fastest counts.
const REPEATS: u32 = 2;

/// The tree on a device, and a plan for each grouping.
pub(crate) struct Session<'a, T> {
    trace: &'a Trace,
    cache: TreeCache,
    nodes: Vec<Option<Node>>,
    /// Tokens that ever were: the next one's id.
    next_token: u64,
    tracks: Vec<Track>,
    view: TreeView,
    view_scratch: ViewScratch,
    buffers: Buffers<T>,
    /// Rows compared so far, for one grouping.
    pub(crate) checked_rows: u64,
    /// Bytes of K and V that queries see, each once, of all steps.
    pub(crate) unique_kv: u64,
}

/// What the session knows of a node, apart from the cache.
struct Node {
    key: NodeKey,
    tokens: Vec<u64>,
    /// Tokens whose K and V the cache has.
    written: u32,
}

/// One grouping.
pub(crate) struct Track {
    pub(crate) grouping: Grouping,
    plan: Option<TreePlan>,
    pub(crate) tally: Tally,
}

/// Sums of a grouping.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// K and V by the paper's formula.
    pub(crate) paper_kv: u64,
    pub(crate) issued: Bytes,
    /// Planning, of all steps, and of those that needed a new plan.
    pub(crate) planning: Duration,
    pub(crate) new_plans: u32,
    pub(crate) new_planning: Duration,
    /// Attention, of the sampled steps.
    pub(crate) attention: Duration,
    /// Worst relative L2 error of an output row, and worst error of an LSE.
    pub(crate) worst_output: f64,
    pub(crate) worst_lse: f64,
}

/// Bytes as issued.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) kv: u64,
    pub(crate) read: u64,
    pub(crate) written: u64,
}

/// `[queries, heads, head_dim]` each.
#[derive(Default)]
struct Buffers<T> {
    k: Vec<T>,
    v: Vec<T>,
    q: Vec<T>,
    out: Vec<T>,
    lse: Vec<f32>,
}

impl<'a, T: KvElement> Session<'a, T> {
    /// An empty cache that holds all of `trace`.
    pub(crate) fn new(trace: &'a Trace, device: &Device, groupings: &[Grouping]) -> Result<Self> {
        let HeadShape {
            q_heads,
            kv_heads,
            head_dim,
        } = trace.heads;
        let page_bytes = 2 * PAGE_TOKENS * kv_heads * head_dim * T::DTYPE.bytes() as u32;
        let config = CacheConfig {
            layers: 1,
            q_heads,
            kv_heads,
            head_dim,
            dtype: T::DTYPE,
            capacity_bytes: trace.most_pages(PAGE_TOKENS).max(1) * u64::from(page_bytes),
            ..CacheConfig::default()
        };
        let track = |&grouping| Track {
            grouping,
            plan: None,
            tally: Tally::default(),
        };
        Ok(Self {
            trace,
            cache: TreeCache::new(device, config).context("cannot make the cache")?,
            nodes: trace.parents.iter().map(|_| None).collect(),
            next_token: 0,
            tracks: groupings.iter().map(track).collect(),
            view: TreeView::default(),
            view_scratch: ViewScratch::default(),
            buffers: Buffers::default(),
            checked_rows: 0,
            unique_kv: 0,
        })
    }

    /// Where it runs, for people.
    pub(crate) fn device(&self) -> String {
        self.cache.backend().name()
    }

    pub(crate) fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Does a step: changes the tree, brings the plans up to date, and counts what they read. If `sampled`,
    /// writes K and V, runs attention and checks it.
    pub(crate) fn step(&mut self, index: u32, sampled: bool) -> Result<()> {
        let trace = self.trace;
        let step = &trace.steps[index as usize];
        for op in &step.ops {
            self.apply(op)?;
        }
        if !step.queries.is_empty() {
            self.plan(step)?;
            if sampled {
                self.attend(index, step)?;
            }
        }
        match &step.accepted {
            Some(accepted) => self.accept(accepted),
            None => Ok(()),
        }
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Root { node, tokens } => {
                let key = self.cache.insert_root(*tokens)?;
                self.arrive(*node, key, *tokens);
            }
            Op::Fork { parent, children } => {
                let keys = self.cache.fork(self.key(*parent)?, children.len())?;
                for (&child, key) in children.iter().zip(keys) {
                    self.arrive(child, key, 0);
                }
            }
            Op::Draft {
                trunk,
                first,
                draft,
            } => {
                let keys = self.cache.insert_draft(self.key(*trunk)?, draft)?;
                for ((node, key), draft) in (*first..).zip(keys).zip(draft) {
                    self.arrive(node, key, draft.tokens);
                }
            }
            Op::Grow { nodes, tokens } => {
                let keys = self.keys(nodes)?;
                self.cache.extend(&keys, *tokens)?;
                for &node in nodes {
                    let fresh = self.fresh(*tokens);
                    self.node_mut(node)?.tokens.extend(fresh);
                }
            }
            Op::Prune { node } => {
                self.cache.prune(self.key(*node)?)?;
                self.nodes[*node as usize] = None;
            }
        }
        Ok(())
    }

    fn arrive(&mut self, node: u32, key: NodeKey, tokens: u32) {
        self.nodes[node as usize] = Some(Node {
            key,
            tokens: self.fresh(tokens).collect(),
            written: 0,
        });
    }

    /// Ids for so many tokens.
    fn fresh(&mut self, tokens: u32) -> Range<u64> {
        let first = self.next_token;
        self.next_token += u64::from(tokens);
        first..self.next_token
    }

    fn node_mut(&mut self, node: u32) -> Result<&mut Node> {
        let found = self.nodes[node as usize].as_mut();
        found.with_context(|| format!("node {node} is not there"))
    }

    fn key(&self, node: u32) -> Result<NodeKey> {
        let found = self.nodes[node as usize].as_ref();
        let found = found.with_context(|| format!("node {node} is not there"))?;
        Ok(found.key)
    }

    fn keys(&self, nodes: &[u32]) -> Result<Vec<NodeKey>> {
        nodes.iter().map(|&node| self.key(node)).collect()
    }

    /// Brings every grouping's plan up to date and counts what a layer reads with it.
    fn plan(&mut self, step: &Step) -> Result<()> {
        let leaves = self.keys(&step.queries)?;
        let (heads, bytes) = (self.trace.heads, T::DTYPE.bytes() as u32);
        let forest = self.cache.forest();
        forest.view_into(&leaves, &mut self.view_scratch, &mut self.view)?;
        self.unique_kv += unique_kv_bytes(&self.view, heads, bytes);
        for track in &mut self.tracks {
            let started = Instant::now();
            let (plan, update) = match track.plan.take() {
                Some(mut plan) if plan.leaves() == leaves => {
                    let update = self.cache.update(&mut plan)?;
                    (plan, update)
                }
                _ => {
                    let plan = self.cache.plan(&leaves, track.grouping)?;
                    (plan, PlanUpdate::Replanned)
                }
            };
            let time = started.elapsed();
            let tally = &mut track.tally;
            tally.planning += time;
            if update == PlanUpdate::Replanned {
                tally.new_plans += 1;
                tally.new_planning += time;
            }
            let lengths = self.cache.forest().lengths();
            tally
                .issued
                .add(&plan.plan().issued_io(heads, bytes, lengths, true));
            tally.paper_kv += PaperIo::of(&self.view, track.grouping.into(), heads, bytes).kv;
            track.plan = Some(plan);
        }
        Ok(())
    }

    /// Attention with every plan, a sample of the rows compared with f64.
    fn attend(&mut self, index: u32, step: &Step) -> Result<()> {
        self.write(step)?;
        let HeadShape {
            q_heads, head_dim, ..
        } = self.trace.heads;
        let head_dim = head_dim as usize;
        let row = q_heads as usize * head_dim;
        let Buffers { q, out, lse, .. } = &mut self.buffers;
        q.resize(step.queries.len() * row, T::default());
        for (query, row) in q.chunks_exact_mut(row).enumerate() {
            data::fill(Kind::Query, query_id(index, query), head_dim, row);
        }
        lse.resize(step.queries.len() * q_heads as usize, 0.0);
        out.resize(q.len(), T::default());
        let expected = self.expected(index, step)?;
        self.checked_rows += expected.len() as u64;
        // Each grouping is first in turn, so that none always finds what another has brought to the caches.
        let count = self.tracks.len();
        for at in (0..count).map(|at| (at + index as usize) % count) {
            let fastest = self.attend_with(at)?;
            let Track {
                grouping, tally, ..
            } = &mut self.tracks[at];
            tally.attention += fastest;
            for row in &expected {
                let heads = q_heads as usize;
                let (output, lse) = row.errors(heads, &self.buffers.out, &self.buffers.lse);
                tally.worst_output = tally.worst_output.max(output);
                tally.worst_lse = tally.worst_lse.max(lse);
                let (most_output, most_lse) = tolerances(T::DTYPE);
                ensure!(
                    output <= most_output && lse <= most_lse,
                    "step {}, {grouping:?}: query of node {}, head {}, is off by {output:.1e} (relative \
                     L2, at most {most_output:.0e}), its LSE by {lse:.1e} (at most {most_lse:.0e})",
                    index + 1,
                    step.queries[row.query],
                    row.head
                );
            }
        }
        Ok(())
    }

    /// Runs attention with one grouping's plan into poisoned memory.
    fn attend_with(&mut self, at: usize) -> Result<Duration> {
        let plan = self.tracks[at].plan.as_ref().context("no plan was made")?;
        let mut fastest = Duration::MAX;
        for _ in 0..REPEATS {
            let Buffers { q, out, lse, .. } = &mut self.buffers;
            out.fill(T::from_f32(f32::NAN));
            lse.fill(f32::NAN);
            let started = Instant::now();
            self.cache.attend_with_lse(0, plan, q, out, lse)?;
            fastest = fastest.min(started.elapsed());
        }
        Ok(fastest)
    }

    /// Writes K and V of all tokens that are new since the last sampled step: those of the plan's leaves
    /// that came last as a decode step would.
    fn write(&mut self, step: &Step) -> Result<()> {
        let mut last = vec![0; self.nodes.len()];
        for &node in &step.queries {
            last[node as usize] = 1;
        }
        let lengths = |node: &Node| node.tokens.len() as u32;
        let all_hold = |node: &u32| {
            self.nodes[*node as usize]
                .as_ref()
                .is_some_and(|n| lengths(n) > 0)
        };
        let as_step = step.queries.iter().all(all_hold);
        for (node, last) in self.nodes.iter_mut().zip(last) {
            let Some(node) = node else { continue };
            let end = lengths(node);
            let bulk = if as_step { end - last } else { end };
            let buffers = &mut self.buffers;
            while node.written < bulk {
                let tokens = node.written..bulk.min(node.written + CHUNK);
                let ids = &node.tokens[tokens.start as usize..tokens.end as usize];
                buffers.fill_kv(self.trace.heads, ids);
                let (k, v) = (&buffers.k, &buffers.v);
                node.written = tokens.end;
                self.cache.append_tokens(0, node.key, tokens, k, v)?;
            }
            node.written = end;
        }
        if as_step {
            let ids = step
                .queries
                .iter()
                .flat_map(|&node| &self.nodes[node as usize]);
            let ids: Vec<u64> = ids.filter_map(|node| node.tokens.last().copied()).collect();
            self.buffers.fill_kv(self.trace.heads, &ids);
            let plan = self.tracks[0].plan.as_ref().context("no plan was made")?;
            self.cache
                .append(0, plan, &self.buffers.k, &self.buffers.v)?;
        }
        Ok(())
    }

    /// Attention by its definition for a few rows, spread over queries and heads. Who sees what comes from
    /// the trace: the forest has no say.
    fn expected(&self, index: u32, step: &Step) -> Result<Vec<Expected>> {
        let HeadShape {
            q_heads,
            kv_heads,
            head_dim,
        } = self.trace.heads;
        let (q_heads, dim) = (q_heads as usize, head_dim as usize);
        let params = ReferenceParams {
            q_heads,
            kv_heads: kv_heads as usize,
            head_dim: dim,
            scale: self.cache.config().params().scale.into(),
            soft_cap: None,
        };
        let rows = CHECKED_ROWS.min(step.queries.len() * q_heads);
        let mut expected = Vec::with_capacity(rows);
        for row in 0..rows {
            let query = row * step.queries.len() / rows;
            let head = (row * q_heads / rows + index as usize) % q_heads;
            let kv_head = head / (q_heads / kv_heads as usize);
            let exact = |kind, id, head| data::exact::<T>(kind, id, head, dim);
            let tokens = self.seen(step.queries[query])?;
            let kv: Vec<_> = tokens
                .iter()
                .map(|&id| {
                    (
                        exact(Kind::Key, id, kv_head),
                        exact(Kind::Value, id, kv_head),
                    )
                })
                .collect();
            let kv: Vec<_> = kv
                .iter()
                .map(|(k, v)| (k.as_slice(), v.as_slice()))
                .collect();
            let q = exact(Kind::Query, query_id(index, query), head);
            let (out, lse) = attend_row(&params, &q, &kv);
            expected.push(Expected {
                query,
                head,
                out,
                lse,
            });
        }
        Ok(expected)
    }

    /// Tokens that a query at `node` sees.
    fn seen(&self, node: u32) -> Result<Vec<u64>> {
        let mut tokens = Vec::new();
        let mut next = Some(node);
        while let Some(node) = next {
            let above = self.nodes[node as usize].as_ref();
            tokens.extend(
                &above
                    .with_context(|| format!("node {node} is not there"))?
                    .tokens,
            );
            next = self.trace.parents[node as usize];
        }
        Ok(tokens)
    }

    fn accept(&mut self, Accepted { trunk, path }: &Accepted) -> Result<()> {
        let keys = self.keys(path)?;
        self.cache.accept(self.key(*trunk)?, &keys)?;
        let mut tokens = Vec::new();
        let mut written = true;
        for &node in path {
            let node = self.node_mut(node)?;
            written &= node.written as usize == node.tokens.len();
            tokens.append(&mut node.tokens);
        }
        let trunk = self.node_mut(*trunk)?;
        if written && trunk.written as usize == trunk.tokens.len() {
            trunk.written += tokens.len() as u32;
        }
        trunk.tokens.append(&mut tokens);
        Ok(())
    }
}

impl Bytes {
    fn add(&mut self, io: &IssuedIo) {
        self.kv += io.kv;
        self.read += io.read();
        self.written += io.written();
    }
}

impl<T: KvElement> Buffers<T> {
    /// K and V of `ids`, `[tokens, kv_heads, head_dim]` each.
    fn fill_kv(&mut self, heads: HeadShape, ids: &[u64]) {
        let dim = heads.head_dim as usize;
        let row = heads.kv_heads as usize * dim;
        for (kind, rows) in [(Kind::Key, &mut self.k), (Kind::Value, &mut self.v)] {
            rows.resize(ids.len() * row, T::default());
            for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(row)) {
                data::fill(kind, id, dim, row);
            }
        }
    }
}

fn query_id(step: u32, query: usize) -> u64 {
    u64::from(step) << 16 | query as u64
}
