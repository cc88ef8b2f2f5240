//! A trace on a real cache: the same tree for every grouping, each with a plan of its own.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deft::abi::PAGE_TOKENS;
use deft::plan::{HeadShape, IssuedIo, unique_kv_bytes};
use deft::tree::{TreeView, ViewScratch};
use deft::{CacheConfig, Device, Grouping, KvElement, NodeKey, PlanUpdate, TreeCache, TreePlan};
use deft_workloads::PaperIo;

use super::trace::{Accepted, Op, Step, Trace};

/// The tree on a device, and a plan for each grouping.
pub(crate) struct Session<'a, T> {
    pub(super) trace: &'a Trace,
    pub(super) cache: TreeCache,
    pub(super) nodes: Vec<Option<Node>>,
    /// Tokens that ever were: the next one's id.
    next_token: u64,
    pub(super) tracks: Vec<Track>,
    view: TreeView,
    view_scratch: ViewScratch,
    pub(super) buffers: Buffers<T>,
    /// Rows compared so far, for one grouping.
    pub(crate) checked_rows: u64,
    /// Bytes of K and V that queries see, each once, of all steps.
    pub(crate) unique_kv: u64,
}

/// What the session knows of a node, apart from the cache.
pub(super) struct Node {
    pub(super) key: NodeKey,
    pub(super) tokens: Vec<u64>,
    /// Tokens whose K and V the cache has.
    pub(super) written: u32,
}

/// One grouping.
pub(crate) struct Track {
    pub(crate) grouping: Grouping,
    pub(super) plan: Option<TreePlan>,
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
pub(super) struct Buffers<T> {
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) q: Vec<T>,
    pub(super) out: Vec<T>,
    pub(super) lse: Vec<f32>,
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
            scale: None,
            soft_cap: None,
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
