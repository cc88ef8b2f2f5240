//! Recorded reasoning trees, decoded step by step and compared with f64.
//!
//! A [`TreeCache`] branches, grows and prunes as a run was recorded. Keys, values and who sees what are kept
//! beside it, by the record's own nodes, so a wrong page is as visible as a wrong sum. The cache has room for
//! the largest moment of the run only: pages of what was pruned are used again.

use anyhow::{Context, Result};
use deft::cache::{DType, KvElement};
use deft::tree::NodeKey;
use deft::{CacheConfig, Device, PlanUpdate, TreeCache, TreePlan};
use deft_workloads::{ReasoningRun, ReasoningStep};
use half::{bf16, f16};

use crate::GroupingArg;
use crate::compare::{Oracle, Outputs, UNWRITTEN, sample};
use crate::random::{Random, normal_pair};
use crate::tensors::{Heads, decode, encode, random_queries};

/// The recorded tasks, as workloads/reasoning has them.
pub(crate) const TASKS: [(&str, &str); 4] = [
    (
        "sorting128ToT",
        include_str!("../../workloads/reasoning/sorting128ToT.json"),
    ),
    (
        "docmergeToT",
        include_str!("../../workloads/reasoning/docmergeToT.json"),
    ),
    (
        "keywordToT",
        include_str!("../../workloads/reasoning/keywordToT.json"),
    ),
    (
        "set128ToT",
        include_str!("../../workloads/reasoning/set128ToT.json"),
    ),
];
/// Pairs of a query and a KV head that a checked step compares.
const CHECKED: u32 = 4;
/// Of the steps that leave every plan as it is, one of so many is checked.
const STRIDE: u32 = 61;

/// How a run went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) steps: u32,
    /// Steps that needed new plans: a node came, ended or went.
    pub(crate) reshaped: u32,
    /// Steps that patched the plans for new pages.
    pub(crate) patched: u32,
    /// Steps compared with f64, with every grouping.
    pub(crate) checked: u32,
    pub(crate) max_rel_l2: f64,
    pub(crate) max_lse_error: f64,
    /// The first wrong step.
    pub(crate) problem: Option<String>,
}

/// Replays `run` on `device` with K and V made from `seed`.
pub(crate) fn run(device: &Device, heads: Heads, run: &ReasoningRun, seed: u64) -> Result<Outcome> {
    match heads.dtype {
        DType::F16 => Replay::<f16>::new(device, heads, run, seed)?.run(),
        _ => Replay::<bf16>::new(device, heads, run, seed)?.run(),
    }
}

struct Replay<'a, T> {
    heads: Heads,
    run: &'a ReasoningRun,
    cache: TreeCache,
    nodes: Vec<Option<Node>>,
    /// A plan a grouping, of the same leaves.
    plans: Vec<TreePlan>,
    random: Random,
    k: Vec<T>,
    v: Vec<T>,
}

/// A node of the record that is there.
struct Node {
    key: NodeKey,
    /// `[tokens, kv_heads, head_dim]`.
    k: Vec<u16>,
    v: Vec<u16>,
}

impl<'a, T: KvElement> Replay<'a, T> {
    fn new(device: &Device, heads: Heads, run: &'a ReasoningRun, seed: u64) -> Result<Self> {
        let pages = most_pages(run)?;
        let config = CacheConfig {
            layers: 1,
            q_heads: heads.q_heads(),
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            dtype: heads.dtype,
            capacity_bytes: u64::from(pages) * heads.shape(pages).page_bytes(),
            scale: Some(heads.params.scale),
            soft_cap: heads.params.soft_cap,
        };
        let mut replay = Self {
            heads,
            run,
            cache: TreeCache::new(device, config)?,
            nodes: run.parents().iter().map(|_| None).collect(),
            plans: Vec::new(),
            random: Random::new(seed),
            k: Vec::new(),
            v: Vec::new(),
        };
        let prompt = run.prompt_tokens();
        let key = replay.cache.insert_root(prompt)?;
        replay.arrive(0, key);
        for _ in 0..prompt {
            replay.new_token(0);
        }
        let tokens = 0..prompt;
        replay
            .cache
            .append_tokens(0, key, tokens, &replay.k, &replay.v)?;
        Ok(replay)
    }

    fn run(mut self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut record = self.run.replay()?;
        while let Some(change) = record.advance()? {
            let step = change.step;
            self.step(&change, record.growing(), &mut outcome)
                .with_context(|| format!("step {step}"))?;
            if outcome.problem.is_some() {
                break;
            }
        }
        Ok(outcome)
    }

    fn step(
        &mut self,
        change: &ReasoningStep,
        growing: &[u32],
        outcome: &mut Outcome,
    ) -> Result<()> {
        outcome.steps += 1;
        for &node in &change.pruned {
            let gone = self.nodes[node as usize].take();
            self.cache.prune(gone.context("it was there")?.key)?;
        }
        let parent_of = |node: &u32| self.run.parents()[*node as usize].unwrap_or_default();
        for siblings in change.born.chunk_by(|a, b| parent_of(a) == parent_of(b)) {
            let parent = self.key(parent_of(&siblings[0]))?;
            let keys = self.cache.fork(parent, siblings.len())?;
            for (&node, key) in siblings.iter().zip(keys) {
                self.arrive(node, key);
            }
        }
        if growing.is_empty() {
            return Ok(());
        }
        let update = self.grow(growing)?;
        self.k.clear();
        self.v.clear();
        for &node in growing {
            self.new_token(node);
        }
        self.cache.append(0, &self.plans[0], &self.k, &self.v)?;
        outcome.reshaped += u32::from(update == PlanUpdate::Replanned);
        outcome.patched += u32::from(update == PlanUpdate::Patched);
        if update != PlanUpdate::Unchanged || change.step.is_multiple_of(STRIDE) {
            outcome.checked += 1;
            self.check(change.step, growing, outcome)?;
        }
        Ok(())
    }

    /// Adds a token to each node and brings all plans up to date; what that took.
    fn grow(&mut self, growing: &[u32]) -> Result<PlanUpdate> {
        let leaves = growing.iter().map(|&node| self.key(node));
        let leaves = leaves.collect::<Result<Vec<_>>>()?;
        if self
            .plans
            .first()
            .is_none_or(|plan| plan.leaves() != leaves)
        {
            self.cache.extend(&leaves, 1)?;
            let plans = GroupingArg::ALL.map(|grouping| self.cache.plan(&leaves, grouping.into()));
            self.plans = plans.into_iter().collect::<Result<_, _>>()?;
            return Ok(PlanUpdate::Replanned);
        }
        let mut update = self.cache.step(&mut self.plans[0])?;
        for plan in &mut self.plans[1..] {
            // A patch that one grouping has room for, another may not have.
            let other = self.cache.update(plan)?;
            if other == PlanUpdate::Replanned || update == PlanUpdate::Unchanged {
                update = other;
            }
        }
        Ok(update)
    }

    /// Attends with every plan into poison and compares.
    fn check(&mut self, step: u32, growing: &[u32], outcome: &mut Outcome) -> Result<()> {
        let heads = self.heads;
        let queries = growing.len() as u32;
        let q = random_queries(&heads, queries, Random::new(self.random.next()));
        let oracle = self.oracle(step, growing, &q);
        for plan in &self.plans {
            let mut outputs = Outputs {
                out: vec![UNWRITTEN; q.len()],
                lse: vec![f32::NAN; (queries * heads.q_heads()) as usize],
            };
            let (q, out) = (
                bytemuck::cast_slice::<_, T>(&q),
                bytemuck::cast_slice_mut(&mut outputs.out),
            );
            self.cache
                .attend_with_lse(0, plan, q, out, &mut outputs.lse)?;
            let verdict = oracle.judge(&outputs);
            outcome.max_rel_l2 = outcome.max_rel_l2.max(verdict.max_rel_l2);
            outcome.max_lse_error = outcome.max_lse_error.max(verdict.max_lse_error);
            if !verdict.passes() {
                let grouping = GroupingArg::name_of(plan.grouping());
                outcome.problem = Some(format!("step {step}, {grouping}: {verdict}"));
                break;
            }
        }
        Ok(())
    }

    /// What is right for a few queries and KV heads, others with each step.
    fn oracle(&self, step: u32, growing: &[u32], q: &[u16]) -> Oracle {
        let Heads {
            dtype,
            kv_heads,
            head_dim,
            ..
        } = self.heads;
        let pairs = sample(growing.len() as u32 * kv_heads, CHECKED);
        let pairs = pairs.into_iter().map(|pair| {
            let pair = (pair + step) % (growing.len() as u32 * kv_heads);
            (pair / kv_heads, pair % kv_heads)
        });
        let dims = head_dim as usize;
        let (nodes, parents) = (&self.nodes, self.run.parents());
        Oracle::of(
            self.heads,
            q,
            &pairs.collect::<Vec<_>>(),
            |query, kv_head| {
                let (mut k, mut v) = (Vec::new(), Vec::new());
                let mut above = Some(growing[query as usize]);
                while let Some(node) = above {
                    if let Some(node) = &nodes[node as usize] {
                        for (rows, seen) in [(&node.k, &mut k), (&node.v, &mut v)] {
                            let of_head = rows.chunks_exact(dims).skip(kv_head as usize);
                            for row in of_head.step_by(kv_heads as usize) {
                                seen.extend(row.iter().map(|&bits| f64::from(decode(dtype, bits))));
                            }
                        }
                    }
                    above = parents[node as usize];
                }
                (k, v)
            },
        )
    }

    fn arrive(&mut self, node: u32, key: NodeKey) {
        self.nodes[node as usize] = Some(Node {
            key,
            k: Vec::new(),
            v: Vec::new(),
        });
    }

    fn key(&self, node: u32) -> Result<NodeKey> {
        let found = self.nodes[node as usize].as_ref();
        Ok(found
            .with_context(|| format!("node {node} is not there"))?
            .key)
    }

    /// Makes up a token's K and V, for the record and as the next row to append.
    fn new_token(&mut self, node: u32) {
        let elements = self.heads.kv_heads * self.heads.head_dim;
        let node = self.nodes[node as usize]
            .as_mut()
            .expect("a node that grows is there");
        let begin = node.k.len();
        for _ in 0..elements {
            let [k, v] = normal_pair(self.random.next());
            node.k.push(encode(self.heads.dtype, k));
            node.v.push(encode(self.heads.dtype, v));
        }
        self.k
            .extend_from_slice(bytemuck::cast_slice(&node.k[begin..]));
        self.v
            .extend_from_slice(bytemuck::cast_slice(&node.v[begin..]));
    }
}

/// Pages in use at the run's largest moment.
fn most_pages(run: &ReasoningRun) -> Result<u32> {
    let mut record = run.replay()?;
    let mut most = record.forest().pool().live();
    while record.advance()?.is_some() {
        most = most.max(record.forest().pool().live());
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use deft::attention::AttentionParams;

    use super::*;

    fn heads() -> Heads {
        Heads {
            dtype: DType::Bf16,
            kv_heads: 2,
            group: 2,
            head_dim: 64,
            params: AttentionParams::new(64),
        }
    }

    /// The shortest recorded run of each task.
    fn shortest() -> impl Iterator<Item = ReasoningRun> {
        let runs = TASKS.map(|(_, text)| ReasoningRun::parse(text).unwrap());
        let shortest = |runs: Vec<ReasoningRun>| runs.into_iter().min_by_key(ReasoningRun::steps);
        runs.into_iter().filter_map(shortest)
    }

    #[test]
    fn every_recorded_task_is_decoded_as_f64_says() {
        for run in shortest() {
            let outcome = super::run(&Device::cpu(), heads(), &run, 1).unwrap();
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
        let mut replay = Replay::<bf16>::new(&Device::cpu(), heads(), &run, 1).unwrap();
        let prompt = replay.nodes[0].as_mut().unwrap();
        prompt.v[..128].fill(encode(DType::Bf16, 900.0));
        let outcome = replay.run().unwrap();
        let problem = outcome.problem.unwrap();
        assert!(problem.starts_with("step 1, per-query: "), "{problem}");
    }
}
