//! Recorded reasoning trees, decoded step by step and compared with f64.
//!
//! A [`TreeCache`] branches, grows and prunes as a run was recorded. Keys, values and who sees what are kept
//! beside it, by the record's own nodes, so a wrong page is as visible as a wrong sum. The cache has room for
//! the largest moment of the run only: pages of what was pruned are used again.

use deft::attention::AttentionParams;
use deft::cache::{CacheShape, KvElement};
use deft::plan::HeadShape;
use deft::tree::NodeKey;
use deft::{Batch, Device, Kv, Out, PlanUpdate, TreeCache};
use deft_workloads::{ReasoningRun, ReasoningStep};
use kernels_gpu::random::word;

use crate::inputs::{normal, normals};
use crate::oracle::{Oracle, Outputs, Verdict, sample};
use crate::problem::GROUPINGS;

/// The recorded tasks, as workloads/reasoning has them.
pub const TASKS: [(&str, &str); 4] = [
    ("sorting128ToT", include_str!("../../workloads/reasoning/sorting128ToT.json")),
    ("docmergeToT", include_str!("../../workloads/reasoning/docmergeToT.json")),
    ("keywordToT", include_str!("../../workloads/reasoning/keywordToT.json")),
    ("set128ToT", include_str!("../../workloads/reasoning/set128ToT.json")),
];
/// Pairs of a query and a KV head that a checked step compares.
const CHECKED: u32 = 4;
/// Of the steps that leave the plan as it is, one of so many is checked.
const STRIDE: u32 = 61;

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Steps that were replayed.
    pub steps: u32,
    /// Steps that needed a new plan: a node came, ended or went.
    pub reshaped: u32,
    /// Steps that patched the plan for new pages.
    pub patched: u32,
    /// Steps compared with f64, with every grouping.
    pub checked: u32,
    /// Largest relative L2 distance of a row.
    pub max_rel_l2: f64,
    /// Largest distance of an LSE.
    pub max_lse_error: f64,
    /// The first wrong step.
    pub problem: Option<String>,
}

impl Outcome {
    fn add(&mut self, verdict: &Verdict) {
        self.max_rel_l2 = self.max_rel_l2.max(verdict.max_rel_l2);
        self.max_lse_error = self.max_lse_error.max(verdict.max_lse_error);
    }
}

/// A run that is replayed on a device, with K and V made from a seed.
pub struct Recorded<'a, T> {
    heads: HeadShape,
    params: AttentionParams,
    run: &'a ReasoningRun,
    cache: TreeCache,
    nodes: Vec<Option<Node<T>>>,
    /// The leaves that grow, as long as they are the same.
    batch: Option<Batch>,
    seed: u64,
    /// Words drawn so far.
    drawn: u64,
    k: Vec<T>,
    v: Vec<T>,
}

/// A node of the record that is there.
struct Node<T> {
    key: NodeKey,
    /// `[tokens, kv_heads, head_dim]`.
    k: Vec<T>,
    v: Vec<T>,
}

impl<'a, T: KvElement> Recorded<'a, T> {
    /// The run's prompt, in a cache that has room for the run and nothing more.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn new(
        device: &Device,
        heads: HeadShape,
        params: AttentionParams,
        run: &'a ReasoningRun,
        seed: u64,
    ) -> Self {
        let shape = CacheShape {
            layers: 1,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            dtype: T::DTYPE,
            pages: most_pages(run),
        };
        let mut builder = TreeCache::builder(device)
            .layers(1)
            .heads(heads.q_heads, heads.kv_heads, heads.head_dim)
            .dtype(T::DTYPE)
            .capacity_bytes(u64::from(shape.pages) * shape.padded().page_bytes())
            .scale(params.scale);
        if let Some(cap) = params.soft_cap {
            builder = builder.soft_cap(cap);
        }
        let mut replay = Self {
            heads,
            params,
            run,
            cache: builder.build().unwrap(),
            nodes: run.parents().iter().map(|_| None).collect(),
            batch: None,
            seed,
            drawn: 0,
            k: Vec::new(),
            v: Vec::new(),
        };
        let prompt = run.prompt_tokens();
        let key = replay.cache.insert_root().unwrap();
        replay.arrive(0, key);
        for _ in 0..prompt {
            replay.new_token(0);
        }
        let batch = replay.cache.batch(&[(key, prompt)]).unwrap();
        let kv = Kv::new(&replay.k, &replay.v);
        replay.cache.append(0, &batch, kv).unwrap();
        replay
    }

    /// Replays until the end or the first wrong step; `about_to` hears the step before it is taken.
    ///
    /// # Panics
    /// If the device refuses, or the record is not what it says.
    pub fn run(mut self, mut about_to: impl FnMut(u32)) -> Outcome {
        let mut outcome = Outcome::default();
        let mut record = self.run.replay().unwrap();
        while let Some(change) = record.advance().unwrap() {
            about_to(change.step);
            self.step(&change, record.growing(), &mut outcome);
            if outcome.problem.is_some() {
                break;
            }
        }
        outcome
    }

    fn step(&mut self, change: &ReasoningStep, growing: &[u32], outcome: &mut Outcome) {
        outcome.steps += 1;
        for &node in &change.pruned {
            let gone = self.nodes[node as usize].take();
            self.cache.prune(gone.expect("it was there").key).unwrap();
        }
        let parent_of = |node: &u32| self.run.parents()[*node as usize].unwrap_or_default();
        for siblings in change.born.chunk_by(|a, b| parent_of(a) == parent_of(b)) {
            let parent = self.key(parent_of(&siblings[0]));
            let keys = self.cache.fork(parent, siblings.len()).unwrap();
            for (&node, key) in siblings.iter().zip(keys) {
                self.arrive(node, key);
            }
        }
        if growing.is_empty() {
            return;
        }
        let (batch, update) = self.grow(growing, outcome.reshaped);
        self.k.clear();
        self.v.clear();
        for &node in growing {
            self.new_token(node);
        }
        let kv = Kv::new(&self.k, &self.v);
        self.cache.append(0, &batch, kv).unwrap();
        outcome.reshaped += u32::from(update == PlanUpdate::Replanned);
        outcome.patched += u32::from(update == PlanUpdate::Patched);
        if update != PlanUpdate::Unchanged || change.step.is_multiple_of(STRIDE) {
            outcome.checked += 1;
            self.check(change.step, growing, &batch, outcome);
        }
        self.batch = Some(batch);
    }

    /// Adds a token to each node. The batch of before goes on where the nodes are the same; where not, the new one is
    /// of the next grouping, so that each is patched in its turn.
    fn grow(&mut self, growing: &[u32], reshaped: u32) -> (Batch, PlanUpdate) {
        let leaves: Vec<_> = growing.iter().map(|&node| (self.key(node), 1)).collect();
        if let Some(mut batch) = self.batch.take().filter(|batch| batch.nodes() == leaves) {
            let update = self.cache.advance(&mut batch, 1).unwrap();
            return (batch, update);
        }
        self.cache.set_grouping(GROUPINGS[reshaped as usize % GROUPINGS.len()]);
        let batch = self.cache.batch(&leaves).unwrap();
        (batch, PlanUpdate::Replanned)
    }

    /// Attends in every grouping, in the batch's by its own plan, and compares.
    fn check(&mut self, step: u32, growing: &[u32], batch: &Batch, outcome: &mut Outcome) {
        let HeadShape { q_heads, head_dim, .. } = self.heads;
        let rows = growing.len() * q_heads as usize;
        let q = normals::<T>(self.next_word(), rows * head_dim as usize, 1.0);
        let oracle = self.oracle(step, growing, &q);
        for grouping in GROUPINGS {
            self.cache.set_grouping(grouping);
            let other = (grouping != batch.grouping())
                .then(|| self.cache.batch_held(batch.nodes()).unwrap());
            let batch = other.as_ref().unwrap_or(batch);
            let mut outputs = Outputs::<T>::unwritten(rows, head_dim);
            let out = Out::with_lse(&mut outputs.out, &mut outputs.lse);
            self.cache.attend(0, batch, &q, out).unwrap();
            let verdict = oracle.judge(&outputs);
            outcome.add(&verdict);
            if !verdict.passes() {
                outcome.problem = Some(format!("step {step}, {grouping:?}: {verdict}"));
                break;
            }
        }
    }

    /// What is right for a few queries and KV heads, others with each step.
    fn oracle(&self, step: u32, growing: &[u32], q: &[T]) -> Oracle {
        let (kv_heads, dims) = (self.heads.kv_heads, self.heads.head_dim as usize);
        let pairs = growing.len() as u32 * kv_heads;
        let sampled = sample(pairs, CHECKED).into_iter();
        let sampled = sampled.map(|pair| (pair + step) % pairs);
        let sampled: Vec<_> = sampled.map(|pair| (pair / kv_heads, pair % kv_heads)).collect();
        let (nodes, parents) = (&self.nodes, self.run.parents());
        Oracle::of(self.heads, &self.params, q, &sampled, |row, kv_head| {
            let (mut k, mut v) = (Vec::new(), Vec::new());
            let mut above = Some(growing[row as usize]);
            while let Some(node) = above {
                if let Some(node) = &nodes[node as usize] {
                    for (rows, seen) in [(&node.k, &mut k), (&node.v, &mut v)] {
                        let of_head = rows.chunks_exact(dims).skip(kv_head as usize);
                        for row in of_head.step_by(kv_heads as usize) {
                            seen.extend(row.iter().map(|value| f64::from(value.to_f32())));
                        }
                    }
                }
                above = parents[node as usize];
            }
            (k, v)
        })
    }

    fn arrive(&mut self, node: u32, key: NodeKey) {
        self.nodes[node as usize] = Some(Node { key, k: Vec::new(), v: Vec::new() });
    }

    fn key(&self, node: u32) -> NodeKey {
        let found = self.nodes[node as usize].as_ref();
        found.expect("a node that grows is there").key
    }

    fn next_word(&mut self) -> u64 {
        self.drawn += 1;
        word(self.seed, self.drawn)
    }

    /// Makes up a token's K and V, for the record and as the next row to append.
    fn new_token(&mut self, node: u32) {
        for _ in 0..self.heads.kv_heads * self.heads.head_dim {
            let [k, v] = normal(self.next_word()).map(T::from_f32);
            self.k.push(k);
            self.v.push(v);
            let node = self.nodes[node as usize].as_mut();
            let node = node.expect("a node that grows is there");
            node.k.push(k);
            node.v.push(v);
        }
    }
}

/// Pages in use at the run's largest moment.
fn most_pages(run: &ReasoningRun) -> u32 {
    let mut record = run.replay().unwrap();
    let mut most = record.forest().pool().live();
    while record.advance().unwrap().is_some() {
        most = most.max(record.forest().pool().live());
    }
    most
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::problem::heads;

    /// The shortest recorded run of each task.
    fn shortest() -> impl Iterator<Item = ReasoningRun> {
        let runs = TASKS.map(|(_, text)| ReasoningRun::parse(text).unwrap());
        let shortest = |runs: Vec<ReasoningRun>| runs.into_iter().min_by_key(ReasoningRun::steps);
        runs.into_iter().filter_map(shortest)
    }

    fn recorded(run: &ReasoningRun) -> Recorded<'_, bf16> {
        let params = AttentionParams::new(64);
        Recorded::new(&Device::cpu(), heads(4, 2, 64), params, run, 1)
    }

    #[test]
    fn every_recorded_task_is_decoded_as_f64_says() {
        for run in shortest() {
            let outcome = recorded(&run).run(|_| {});
            assert_eq!(outcome.problem, None);
            assert_eq!(outcome.steps, run.steps());
            assert!(outcome.reshaped > 5 && outcome.patched > 0, "{outcome:?}");
            assert!(outcome.checked > outcome.reshaped + outcome.patched);
            assert!(outcome.max_rel_l2 > 0.0);
        }
    }

    #[test]
    fn a_token_that_is_not_the_recorded_one_is_found() {
        let run = shortest().last().unwrap();
        let mut replay = recorded(&run);
        let prompt = replay.nodes[0].as_mut().unwrap();
        prompt.v[..128].fill(bf16::from_f32(900.0));
        let problem = replay.run(|_| {}).problem.unwrap();
        assert!(problem.starts_with("step 1, PerQuery: "), "{problem}");
    }
}
