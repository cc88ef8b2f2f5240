//! A recorded run on a real cache: the same tree for every grouping, each with a plan of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deft::abi::PAGE_TOKENS;
use deft::plan::{HeadShape, Patch, Plan, Planner, unique_kv_bytes};
use deft::tree::{GrowthCursor, TokenForest};
use deft::{Batch, DType, Device, Grouping, Kv, NodeKey, Out, TreeCache, bf16};
use deft_tests::reference::attention::{ReferenceParams, attend_row};
use deft_workloads::{PaperIo, ReasoningRun, ReasoningStep};
use kernels_gpu::random;

use super::GROUPINGS;

/// The heads of a layer.
pub(crate) const HEADS: HeadShape = deft_workloads::LLAMA3_8B;
const Q_HEADS: usize = HEADS.q_heads as usize;
const KV_HEADS: usize = HEADS.kv_heads as usize;
const HEAD_DIM: usize = HEADS.head_dim as usize;
/// Bytes of an element of K and V, bf16.
const ELEMENT: u32 = 2;
/// Rows, each a query and a head, that a step compares with f64.
const CHECKED_ROWS: usize = 4;
/// Most relative L2 error of a row, and most error of its LSE.
const TOLERANCES: (f64, f64) = (5e-3, 1e-3);
/// Times that attention is run; the fastest counts.
const REPEATS: u32 = 2;

/// The tree on a device, and a plan for each grouping.
pub(crate) struct Session<'a> {
    run: &'a ReasoningRun,
    cache: TreeCache,
    nodes: Vec<Option<Node>>,
    /// Tokens that ever were: the next one's id.
    next_token: u64,
    pub(crate) tracks: Vec<Track>,
    /// Rows compared so far, for one grouping.
    pub(crate) checked_rows: usize,
    /// Bytes of K and V that queries see, each once, of all steps.
    pub(crate) unique_kv: u64,
}

/// What the session knows of a node, apart from the cache.
struct Node {
    key: NodeKey,
    tokens: Vec<u64>,
    /// Of these, tokens whose K and V the cache has.
    written: usize,
}

/// One grouping, and its sums.
pub(crate) struct Track {
    pub(crate) grouping: Grouping,
    planner: Planner,
    plan: Plan,
    /// The leaves that the plan is of, and the forest's growth when it was made or patched.
    leaves: Vec<NodeKey>,
    cursor: GrowthCursor,
    /// Bytes of K and V by the paper's formula.
    pub(crate) paper_kv: u64,
    /// Bytes as issued: K and V, and all reads.
    pub(crate) issued_kv: u64,
    pub(crate) issued_read: u64,
    pub(crate) planning: Duration,
    pub(crate) new_plans: u32,
    /// Attention, of the sampled steps.
    pub(crate) attention: Duration,
    /// Worst relative L2 error of an output row, and worst error of an LSE.
    pub(crate) worst_output: f64,
    pub(crate) worst_lse: f64,
}

/// What a made-up vector is.
#[derive(Clone, Copy)]
enum Kind {
    Key = 1,
    Value,
    Query,
}

impl<'a> Session<'a> {
    /// An empty cache with room for all that `run` ever has.
    pub(crate) fn new(run: &'a ReasoningRun, device: &Device) -> Result<Self> {
        let nodes = 1..run.parents().len() as u32;
        let grown = nodes.map(|node| {
            let (start, end) = run.steps_of(node);
            (end + 1 - start).div_ceil(PAGE_TOKENS)
        });
        let pages = run.prompt_tokens().div_ceil(PAGE_TOKENS) + grown.sum::<u32>();
        let page_bytes = 2 * PAGE_TOKENS * HEADS.kv_heads * HEADS.head_dim * ELEMENT;
        let mut cache = TreeCache::builder(device)
            .layers(1)
            .heads(HEADS.q_heads, HEADS.kv_heads, HEADS.head_dim)
            .dtype(DType::Bf16)
            .capacity_bytes(u64::from(pages) * u64::from(page_bytes))
            .build()
            .context("cannot make the cache")?;
        let mut nodes: Vec<Option<Node>> = run.parents().iter().map(|_| None).collect();
        let root = cache.insert_root()?;
        cache.extend(&[root], run.prompt_tokens())?;
        nodes[0] =
            Some(Node { key: root, tokens: (0..run.prompt_tokens().into()).collect(), written: 0 });
        let tracks = GROUPINGS.map(|grouping| Track::new(grouping, &cache));
        Ok(Self {
            run,
            nodes,
            next_token: run.prompt_tokens().into(),
            tracks: tracks.into_iter().collect::<Result<_>>()?,
            cache,
            checked_rows: 0,
            unique_kv: 0,
        })
    }

    /// Where it runs, for people.
    pub(crate) fn device(&self) -> String {
        self.cache.backend().name()
    }

    /// Tokens that ever were.
    pub(crate) fn tokens(&self) -> u64 {
        self.next_token
    }

    /// Does a step: changes the tree, adds a token to each of `growing`, brings the plans up to date, and counts what
    /// they read. If `sampled`, writes K and V, runs attention and checks it.
    pub(crate) fn step(
        &mut self,
        change: &ReasoningStep,
        growing: &[u32],
        sampled: bool,
    ) -> Result<()> {
        for &node in &change.pruned {
            self.cache.prune(self.node(node)?.key)?;
            self.nodes[node as usize] = None;
        }
        for &node in &change.born {
            let parent = self.run.parents()[node as usize].context("the prompt is there")?;
            let key = self.cache.fork(self.node(parent)?.key, 1)?[0];
            self.nodes[node as usize] = Some(Node { key, tokens: Vec::new(), written: 0 });
        }
        if growing.is_empty() {
            return Ok(());
        }
        let keys = growing.iter().map(|&node| Ok(self.node(node)?.key));
        let leaves: Vec<NodeKey> = keys.collect::<Result<_>>()?;
        self.cache.extend(&leaves, 1)?;
        for &node in growing {
            let token = self.next_token;
            self.nodes[node as usize].iter_mut().for_each(|node| node.tokens.push(token));
            self.next_token += 1;
        }
        self.plan(&leaves)?;
        if sampled {
            self.write()?;
            self.attend(change.step, growing, &leaves)?;
        }
        Ok(())
    }

    fn node(&self, node: u32) -> Result<&Node> {
        let found = self.nodes[node as usize].as_ref();
        found.with_context(|| format!("node {node} is not there"))
    }

    /// Brings every grouping's plan up to date and counts what a layer reads with it.
    fn plan(&mut self, leaves: &[NodeKey]) -> Result<()> {
        let view = self.cache.forest().view(leaves)?;
        self.unique_kv += unique_kv_bytes(&view, HEADS, ELEMENT);
        for track in &mut self.tracks {
            track.update(self.cache.forest(), leaves)?;
            let lengths = self.cache.forest().lengths();
            let issued = track.plan.issued_io(HEADS, ELEMENT, lengths, true);
            track.issued_kv += issued.kv;
            track.issued_read += issued.read();
            track.paper_kv += PaperIo::of(&view, track.grouping.into(), HEADS, ELEMENT).kv;
        }
        Ok(())
    }

    /// Writes K and V of all tokens that are new since the last sampled step.
    fn write(&mut self) -> Result<()> {
        let (mut new, mut ids) = (Vec::new(), Vec::new());
        for node in self.nodes.iter_mut().flatten() {
            let tokens = &node.tokens[node.written..];
            if !tokens.is_empty() {
                new.push((node.key, tokens.len() as u32));
                ids.extend(tokens);
            }
            node.written = node.tokens.len();
        }
        let batch = self.cache.batch_held(&new)?;
        let (k, v) = (rows(Kind::Key, &ids), rows(Kind::Value, &ids));
        Ok(self.cache.append(0, &batch, Kv::new(&k, &v))?)
    }

    /// Attention in every grouping, a sample of the rows compared with f64.
    fn attend(&mut self, step: u32, growing: &[u32], leaves: &[NodeKey]) -> Result<()> {
        let ids = (0..growing.len() as u64).map(|query| u64::from(step) << 16 | query);
        let q: Vec<bf16> = ids
            .flat_map(|id| (0..Q_HEADS).flat_map(move |head| vector(Kind::Query, id, head)))
            .collect();
        let newest: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let rows = CHECKED_ROWS.min(growing.len() * Q_HEADS);
        self.checked_rows += rows;
        // Each grouping is first in turn, so that none always finds what another has brought to the caches.
        let count = self.tracks.len();
        for at in (0..count).map(|at| (at + step as usize) % count) {
            self.cache.set_grouping(self.tracks[at].grouping);
            let batch = self.cache.batch_held(&newest)?;
            let (out, lse) = self.attend_with(at, &batch, &q)?;
            for row in 0..rows {
                let query = row * growing.len() / rows;
                let head = (row * Q_HEADS / rows + step as usize) % Q_HEADS;
                let at_row = query * Q_HEADS + head;
                let place = at_row * HEAD_DIM..(at_row + 1) * HEAD_DIM;
                let expected = self.expected(growing[query], head, &q[place.clone()])?;
                let (output, lse) = errors(&expected, &out[place], lse[at_row]);
                let track = &mut self.tracks[at];
                track.worst_output = track.worst_output.max(output);
                track.worst_lse = track.worst_lse.max(lse);
                ensure!(
                    output <= TOLERANCES.0 && lse <= TOLERANCES.1,
                    "{:?}: query of node {}, head {head}, is off by {output:.1e} (relative L2, at most {:.0e}), its \
                     LSE by {lse:.1e} (at most {:.0e})",
                    track.grouping,
                    growing[query],
                    TOLERANCES.0,
                    TOLERANCES.1
                );
            }
        }
        Ok(())
    }

    /// Runs attention of `batch`, which is in one track's grouping, into poisoned memory: `[queries, q_heads, head_dim]`
    /// and `[queries, q_heads]`.
    fn attend_with(
        &mut self,
        at: usize,
        batch: &Batch,
        q: &[bf16],
    ) -> Result<(Vec<bf16>, Vec<f32>)> {
        let mut out = vec![bf16::NAN; q.len()];
        let mut lse = vec![f32::NAN; q.len() / HEAD_DIM];
        let mut fastest = Duration::MAX;
        for _ in 0..REPEATS {
            out.fill(bf16::NAN);
            lse.fill(f32::NAN);
            let started = Instant::now();
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(0, batch, q, results)?;
            fastest = fastest.min(started.elapsed());
        }
        self.tracks[at].attention += fastest;
        Ok((out, lse))
    }

    /// Attention by its definition for one query at `node`, `q: [head_dim]`. Who sees what comes from the recording:
    /// the forest has no say.
    fn expected(&self, node: u32, head: usize, q: &[bf16]) -> Result<(Vec<f64>, f64)> {
        let params = ReferenceParams {
            q_heads: Q_HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: self.cache.config().params().scale.into(),
            soft_cap: None,
        };
        let (mut kv, mut next) = (Vec::new(), Some(node));
        while let Some(node) = next {
            let exact = |kind, id| exact(&vector(kind, id, head / (Q_HEADS / KV_HEADS)));
            let tokens = self.node(node)?.tokens.iter();
            kv.extend(tokens.map(|&id| (exact(Kind::Key, id), exact(Kind::Value, id))));
            next = self.run.parents()[node as usize];
        }
        let kv: Vec<(&[f64], &[f64])> = kv.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        Ok(attend_row(&params, &exact(q), &kv))
    }
}

impl Track {
    fn new(grouping: Grouping, cache: &TreeCache) -> Result<Self> {
        let config = cache.backend().plan_config(grouping, HEADS.group_size());
        Ok(Self {
            grouping,
            planner: Planner::new(config)?,
            plan: Plan::empty(),
            leaves: Vec::new(),
            cursor: cache.forest().growth_cursor(),
            paper_kv: 0,
            issued_kv: 0,
            issued_read: 0,
            planning: Duration::ZERO,
            new_plans: 0,
            attention: Duration::ZERO,
            worst_output: 0.0,
            worst_lse: 0.0,
        })
    }

    /// Patches the plan where the leaves are the same and there is room in it, else makes it anew.
    fn update(&mut self, forest: &TokenForest, leaves: &[NodeKey]) -> Result<()> {
        let started = Instant::now();
        let growth = forest.growth_since(self.cursor);
        let growth = growth.filter(|_| self.leaves == leaves);
        let patched =
            growth.is_some_and(|new| self.plan.patch(new, &mut Vec::new()) == Patch::Patched);
        if !patched {
            self.planner.plan_into(&forest.view(leaves)?, &mut self.plan)?;
            self.leaves = leaves.to_vec();
            self.new_plans += 1;
        }
        self.cursor = forest.growth_cursor();
        self.planning += started.elapsed();
        Ok(())
    }
}

/// How far a row and its LSE are off: the relative L2 error, and the LSE's relative to the larger of it and 1.
/// Infinite for a NaN.
fn errors((out, lse): &(Vec<f64>, f64), got: &[bf16], got_lse: f32) -> (f64, f64) {
    let norm: f64 = out.iter().map(|x| x * x).sum();
    let squares = got.iter().zip(out).map(|(got, out)| (got.to_f64() - out).powi(2));
    let number = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
    (
        number((squares.sum::<f64>() / norm.max(1e-30)).sqrt()),
        number((f64::from(got_lse) - lse).abs() / lse.abs().max(1.0)),
    )
}

/// K or V of the tokens `ids`: `[tokens, kv_heads, head_dim]`.
fn rows(kind: Kind, ids: &[u64]) -> Vec<bf16> {
    let row = |&id: &u64| (0..KV_HEADS).flat_map(move |head| vector(kind, id, head));
    ids.iter().flat_map(row).collect()
}

/// `[head_dim]` of one head of a token or query: a function of who it belongs to, so that nothing has to be kept.
/// Queries are larger than keys, so that softmax prefers some tokens.
fn vector(kind: Kind, id: u64, head: usize) -> Vec<bf16> {
    let seed = random::word((kind as u64) << 60 ^ id << 16 ^ head as u64, 0);
    let scale = if matches!(kind, Kind::Query) { 6.0 } else { 1.0 };
    let elements = (0..HEAD_DIM as u64).map(|index| random::uniform(seed, index, scale));
    elements.map(bf16::from_f32).collect()
}

fn exact(vector: &[bf16]) -> Vec<f64> {
    vector.iter().map(|x| x.to_f64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_and_infinite_where_nothing_was_written() {
        let expected = (vec![3.0, 4.0], 2.0);
        let row = |x: f32| [bf16::from_f32(3.0), bf16::from_f32(x)];
        assert_eq!(errors(&expected, &row(4.0), 2.0), (0.0, 0.0));
        assert_eq!(errors(&expected, &row(4.5), 2.5), (0.1, 0.25));
        let nothing = errors(&expected, &row(f32::NAN), f32::NAN);
        assert_eq!(nothing, (f64::INFINITY, f64::INFINITY));
    }
}
