//! A decode loop under one captured graph: leaves grow, branch and are pruned, and every step is compared
//! with f64.

use anyhow::{Context, Result, ensure};
use deft::abi::{AppendTarget, NONE};
use deft::attention::AttentionParams;
use deft::cache::DType;
use deft::cuda::{Append, AttendBuffers, CudaCache, CudaPlan, DeviceBuffer, Graph, PlanCapacity};
use deft::plan::{Grouping, Patch, Plan, Planner};
use deft::tree::{GrowthCursor, NodeKey, TokenForest};

use crate::compare::{Oracle, Outputs, UNWRITTEN, Verdict};
use crate::forests::shuffled_forest;
use crate::gpu::Gpu;
use crate::random::Random;
use crate::tensors::{Heads, HostPool, random_queries};

const PAGES: u32 = 512;
const SLOTS: u32 = 512;
const PROMPT: u32 = 200;
/// Most leaves at a time: rows of the buffers that the graph was captured with.
const MAX_LEAVES: u32 = 24;
/// Room for plans, in multiples of what the first needs.
const HEADROOM: u32 = 16;
/// Room for partial results: the first plan, of four empty leaves, has hardly any.
const MOST_PARTIALS: usize = 4096;

/// What it took to keep one graph right.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) steps: u32,
    /// Steps without any host work for the plan or the counters.
    pub(crate) untouched: u32,
    /// Steps that patched the plan for new pages.
    pub(crate) patched: u32,
    pub(crate) patch_bytes: usize,
    /// Steps that planned anew.
    pub(crate) planned: u32,
    pub(crate) max_rel_l2: f64,
    pub(crate) max_lse_error: f64,
    /// The first wrong step.
    pub(crate) problem: Option<String>,
}

/// The tree and everything on the device.
struct Loop<'g> {
    gpu: &'g Gpu,
    heads: Heads,
    forest: TokenForest,
    leaves: Vec<NodeKey>,
    pool: HostPool,
    random: Random,
    planner: Planner,
    plan: Plan,
    cursor: GrowthCursor,
    cache: CudaCache,
    device_plan: CudaPlan,
    buffers: Buffers,
}

/// Device memory at addresses that the graph knows.
struct Buffers {
    q: DeviceBuffer<u16>,
    k: DeviceBuffer<u16>,
    v: DeviceBuffer<u16>,
    targets: DeviceBuffer<AppendTarget>,
    out: DeviceBuffer<u16>,
    lse: DeviceBuffer<f32>,
}

/// Decodes `steps` steps with one graph.
pub(crate) fn run(
    gpu: &Gpu,
    dtype: DType,
    head_dim: u32,
    grouping: Grouping,
    steps: u32,
) -> Result<Outcome> {
    let mut decode = Loop::new(gpu, dtype, head_dim, grouping)?;
    let mut graph = decode.capture()?;
    let mut outcome = Outcome::default();
    for step in 0..steps {
        let verdict = decode
            .step(step, &mut graph, &mut outcome)
            .with_context(|| format!("decode step {step}"))?;
        outcome.steps += 1;
        outcome.max_rel_l2 = outcome.max_rel_l2.max(verdict.max_rel_l2);
        outcome.max_lse_error = outcome.max_lse_error.max(verdict.max_lse_error);
        if !verdict.passes() {
            outcome.problem = Some(format!("step {step}: {verdict}"));
            return Ok(outcome);
        }
    }
    outcome.problem = decode.check_counters()?;
    Ok(outcome)
}

impl<'g> Loop<'g> {
    fn new(gpu: &'g Gpu, dtype: DType, head_dim: u32, grouping: Grouping) -> Result<Self> {
        let heads = Heads {
            dtype,
            kv_heads: 4,
            group: 4,
            head_dim,
            params: AttentionParams::new(head_dim),
        };
        let mut random = Random::new(11);
        let mut forest = shuffled_forest(PAGES, &mut random)?;
        let root = forest.insert_root(PROMPT)?;
        let pool = HostPool::random(heads, PAGES, &forest.view(&[root])?, Random::new(12));
        let leaves = forest.fork(root, 4)?;
        let mut cache = CudaCache::new(&gpu.device, heads.shape(PAGES), SLOTS)?;
        let mut planner = Planner::new(cache.plan_config(grouping, heads.group))?;
        let plan = planner.plan(&forest.view(&leaves)?)?;
        cache.pool().write(0, &pool.elements, &gpu.stream)?;
        cache.set_counters(forest.lengths(), forest.tail_pages(), &gpu.stream)?;
        let mut capacity = PlanCapacity::of(&plan).scaled(HEADROOM);
        capacity.merge_slots = capacity.merge_slots.max(MOST_PARTIALS);
        capacity.partial_slots = capacity.partial_slots.max(MOST_PARTIALS as u32);
        let device_plan = cache.reserve(capacity, heads.group)?;
        Ok(Self {
            buffers: Buffers::new(gpu, &heads)?,
            cursor: forest.growth_cursor(),
            gpu,
            heads,
            forest,
            leaves,
            pool,
            random,
            planner,
            plan,
            cache,
            device_plan,
        })
    }

    /// The one graph: counters advance, K and V are appended, attention.
    fn capture(&self) -> Result<Graph> {
        let buffers = &self.buffers;
        let append = Append {
            targets: buffers.targets.pointer(),
            count: MAX_LEAVES,
            k: buffers.k.pointer(),
            v: buffers.v.pointer(),
        };
        let attend = AttendBuffers {
            q: buffers.q.pointer(),
            out: buffers.out.pointer(),
            lse: buffers.lse.pointer(),
        };
        self.gpu.capture(|stream| {
            let (cache, params) = (&self.cache, &self.heads.params);
            // SAFETY: the buffers have a row for each of `MAX_LEAVES` leaves and live as long as the loop;
            // everything runs on one stream.
            unsafe {
                cache.advance(append.targets, append.count, stream.raw())?;
                cache.append(0, &append, stream.raw())?;
                cache.attend(0, &self.device_plan, &attend, params, stream.raw())
            }
        })
    }

    fn step(&mut self, step: u32, graph: &mut Graph, outcome: &mut Outcome) -> Result<Verdict> {
        let reshaped = step == 0 || self.reshape(step)?;
        // The graph advances the counters itself, so it starts from those before the step.
        let before = self.forest.lengths().to_vec();
        let pages = self.forest.extend(&self.leaves, 1)?;
        let stream = &self.gpu.stream;
        let view = self.forest.view(&self.leaves)?;
        if reshaped {
            self.plan_anew(&before, outcome)?;
        } else if pages > 0 {
            self.patch(&before, outcome)?;
        } else {
            outcome.untouched += 1;
        }
        self.new_tokens()?;
        let q = random_queries(&self.heads, view.queries, Random::new(self.random.next()));
        self.buffers.q.write(0, &q, stream)?;
        let [byte, _] = UNWRITTEN.to_le_bytes();
        self.buffers.out.fill_bytes(byte, stream)?;
        self.buffers.lse.fill_bytes(byte, stream)?;
        // SAFETY: all that the graph uses is this loop's.
        unsafe { graph.launch(stream) }?;
        self.gpu.settle("the decode graph")?;
        self.cache.assume_lengths(self.forest.lengths())?;
        let queries: Vec<u32> = (0..view.queries).collect();
        let oracle = Oracle::new(&self.pool, &view, &q, &queries);
        Ok(oracle.judge(&self.outputs(view.queries)?))
    }

    /// Branches or prunes now and then; whether the tree has another shape now.
    fn reshape(&mut self, step: u32) -> Result<bool> {
        let leaves = self.leaves.len() as u32;
        let pick = self.random.between(0, leaves - 1) as usize;
        if step.is_multiple_of(13) && leaves + 2 <= MAX_LEAVES {
            let parent = self.leaves.swap_remove(pick);
            let children = self.random.between(2, 3) as usize;
            self.leaves.extend(self.forest.fork(parent, children)?);
            return Ok(true);
        }
        if step.is_multiple_of(29) && leaves > 2 {
            let leaf = self.leaves.swap_remove(pick);
            self.forest.prune(leaf)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn plan_anew(&mut self, lengths: &[u32], outcome: &mut Outcome) -> Result<()> {
        let stream = &self.gpu.stream;
        self.plan = self.planner.plan(&self.forest.view(&self.leaves)?)?;
        self.cursor = self.forest.growth_cursor();
        self.device_plan.update(&self.plan, stream)?;
        self.cache
            .set_counters(lengths, self.forest.tail_pages(), stream)?;
        let mut targets = Vec::new();
        self.forest.live_targets(&self.leaves, &mut targets)?;
        targets.resize(MAX_LEAVES as usize, NONE);
        self.buffers.targets.write(0, &targets, stream)?;
        outcome.planned += 1;
        Ok(())
    }

    fn patch(&mut self, lengths: &[u32], outcome: &mut Outcome) -> Result<()> {
        let stream = &self.gpu.stream;
        let growth = self.forest.growth_since(self.cursor);
        let growth = growth.context("the shape has changed without a new plan")?;
        let mut dirty = Vec::new();
        if self.plan.patch(growth, &mut dirty) == Patch::Stale {
            return self.plan_anew(lengths, outcome);
        }
        self.cursor = self.forest.growth_cursor();
        outcome.patch_bytes += self.device_plan.patch(&self.plan, &dirty, stream)?;
        outcome.patch_bytes +=
            self.cache
                .set_counters(lengths, self.forest.tail_pages(), stream)?;
        outcome.patched += 1;
        Ok(())
    }

    /// K and V of each leaf's last token, for the device and for the reference.
    fn new_tokens(&mut self) -> Result<()> {
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for &leaf in &self.leaves {
            let slot = self.forest.length_slot(leaf)? as usize;
            let page = self.forest.tail_pages()[slot];
            let token = (self.forest.lengths()[slot] - 1) % 64;
            let (key, value) = self.pool.write_token(page, token, &mut self.random);
            k.extend(key);
            v.extend(value);
        }
        self.buffers.k.write(0, &k, &self.gpu.stream)?;
        self.buffers.v.write(0, &v, &self.gpu.stream)?;
        Ok(())
    }

    fn outputs(&self, queries: u32) -> Result<Outputs> {
        let mut outputs = Outputs {
            out: vec![0; queries as usize * self.heads.query_elements()],
            lse: vec![0.0; (queries * self.heads.q_heads()) as usize],
        };
        self.buffers
            .out
            .read(0, &mut outputs.out, &self.gpu.stream)?;
        self.buffers
            .lse
            .read(0, &mut outputs.lse, &self.gpu.stream)?;
        Ok(outputs)
    }

    /// Whether the device counted as the forest did.
    fn check_counters(&self) -> Result<Option<String>> {
        let expected = self.forest.lengths();
        let mut found = vec![0; expected.len()];
        self.cache.lengths().read(0, &mut found, &self.gpu.stream)?;
        ensure!(found.len() == expected.len(), "as many counters as slots");
        let wrong = found
            .iter()
            .zip(expected)
            .position(|(found, right)| found != right);
        Ok(wrong.map(|slot| {
            format!(
                "length counter {slot} is {} on the device, {} in the forest",
                found[slot], expected[slot]
            )
        }))
    }
}

impl Buffers {
    fn new(gpu: &Gpu, heads: &Heads) -> Result<Self> {
        let rows = MAX_LEAVES as usize;
        let kv = rows * (heads.kv_heads * heads.head_dim) as usize;
        let q = rows * heads.query_elements();
        let device = &gpu.device;
        Ok(Self {
            q: DeviceBuffer::uninitialized(device, "queries", q)?,
            k: DeviceBuffer::uninitialized(device, "new keys", kv)?,
            v: DeviceBuffer::uninitialized(device, "new values", kv)?,
            targets: DeviceBuffer::from_slice(device, "targets", &vec![NONE; rows])?,
            out: DeviceBuffer::uninitialized(device, "outputs", q)?,
            lse: DeviceBuffer::uninitialized(device, "LSEs", rows * heads.q_heads() as usize)?,
        })
    }
}
