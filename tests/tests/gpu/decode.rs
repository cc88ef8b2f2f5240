//! Decoding on a GPU: loops under one captured graph whose leaves grow, branch and are pruned, and recorded reasoning
//! runs, every step against f64.
//!
//! Without a GPU it says so and passes. `DEFT_STEPS=300` is the long run.

use deft::attention::AttentionParams;
use deft::cache::{DType, KvElement};
use deft::cuda::{Append, AttendBuffers, CudaCache, CudaPlan, DeviceBuffer, Graph, PlanCapacity};
use deft::plan::{Grouping, HeadShape, Patch, Plan, Planner};
use deft::tree::{GrowthCursor, NodeKey, TokenForest};
use deft_tests::forests::shuffled_forest;
use deft_tests::gpu::{Gpu, Tally, kernel_variants, random_layer, say, setting, variants};
use deft_tests::inputs::{Inputs, normals};
use deft_tests::oracle::{Oracle, Outputs, Verdict};
use deft_tests::problem::heads;
use deft_tests::recorded::{Recorded, TASKS};
use deft_workloads::ReasoningRun;
use half::{bf16, f16};
use kernels_gpu::abi::{AppendTarget, NONE, PAGE_TOKENS};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const HEADS: (u32, u32) = (16, 4);
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
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// Steps without any host work for the plan or the counters.
    untouched: u32,
    /// Steps that patched the plan for new pages.
    patched: u32,
    patch_bytes: usize,
    /// Steps that planned anew.
    planned: u32,
}

/// The tree and everything on the device.
struct Loop<'g, T> {
    gpu: &'g Gpu,
    heads: HeadShape,
    forest: TokenForest,
    leaves: Vec<NodeKey>,
    /// K and V of the whole pool.
    inputs: Inputs<T>,
    rng: SmallRng,
    planner: Planner,
    plan: Plan,
    cursor: GrowthCursor,
    cache: CudaCache,
    device_plan: CudaPlan,
    buffers: Buffers<T>,
    outcome: Outcome,
}

/// Device memory at addresses that the graph knows.
struct Buffers<T> {
    q: DeviceBuffer<T>,
    k: DeviceBuffer<T>,
    v: DeviceBuffer<T>,
    targets: DeviceBuffer<AppendTarget>,
    out: DeviceBuffer<T>,
    lse: DeviceBuffer<f32>,
}

#[test]
fn one_graph_decodes_a_tree_that_grows_branches_and_is_pruned() {
    let mut wrong = 0;
    for gpu in Gpu::each() {
        for (dtype, head_dim) in kernel_variants() {
            for grouping in [Grouping::Flatten, Grouping::Node] {
                wrong += match dtype {
                    DType::F16 => decode::<f16>(&gpu, head_dim, grouping),
                    _ => decode::<bf16>(&gpu, head_dim, grouping),
                };
            }
        }
    }
    assert_eq!(wrong, 0, "steps are wrong");
}

/// Decodes with one graph until a step is wrong; how many were.
fn decode<T: KvElement>(gpu: &Gpu, head_dim: u32, grouping: Grouping) -> u32 {
    let name = format!("{} {}_d{head_dim} {grouping:?}", gpu.arch(), T::DTYPE);
    gpu.watchdog.now(&name);
    let mut decode = Loop::<T>::new(gpu, head_dim, grouping);
    let mut graph = decode.capture();
    let mut tally = Tally::default();
    for step in 0..setting("DEFT_STEPS", 60) as u32 {
        let verdict = decode.step(step, &mut graph);
        tally.add(&verdict, format!("{name}, step {step}"));
        if !verdict.passes() {
            return tally.wrong(&name);
        }
    }
    // The device counted as the forest did.
    let counted = gpu.download(decode.cache.lengths());
    let expected = decode.forest.lengths();
    assert_eq!(counted[..expected.len()], *expected, "{name}: length counters");
    say(&format!("{name}: {:?}", decode.outcome));
    tally.wrong(&name)
}

impl<'g, T: KvElement> Loop<'g, T> {
    fn new(gpu: &'g Gpu, head_dim: u32, grouping: Grouping) -> Self {
        let heads = heads(HEADS.0, HEADS.1, head_dim);
        let mut rng = SmallRng::seed_from_u64(11);
        let mut forest = shuffled_forest(PAGES, &mut rng);
        let root = forest.insert_root(PROMPT).unwrap();
        let mut filled = vec![0; PAGES as usize];
        let view = forest.view(&[root]).unwrap();
        for (&page, before) in view.pages.iter().zip((0..).step_by(PAGE_TOKENS as usize)) {
            filled[page as usize] = (PROMPT - before).min(PAGE_TOKENS);
        }
        let params = AttentionParams::new(head_dim);
        let inputs = Inputs::random(heads, params, &filled, 0, 12);
        let leaves = forest.fork(root, 4).unwrap();
        let mut cache = CudaCache::new(&gpu.device, inputs.shape(1), SLOTS).unwrap();
        let config = cache.plan_config(grouping, heads.group_size());
        let mut planner = Planner::new(config).unwrap();
        let plan = planner.plan(&forest.view(&leaves).unwrap()).unwrap();
        write_pages(gpu, &cache, &inputs);
        cache.set_counters(forest.lengths(), forest.tail_pages(), &gpu.stream).unwrap();
        let mut capacity = PlanCapacity::of(&plan).scaled(HEADROOM);
        capacity.merge_slots = capacity.merge_slots.max(MOST_PARTIALS);
        capacity.partial_slots = capacity.partial_slots.max(MOST_PARTIALS as u32);
        Self {
            device_plan: cache.reserve(capacity, heads.group_size()).unwrap(),
            buffers: Buffers::new(gpu, heads),
            cursor: forest.growth_cursor(),
            outcome: Outcome::default(),
            gpu,
            heads,
            forest,
            leaves,
            inputs,
            rng,
            planner,
            plan,
            cache,
        }
    }

    /// The one graph: counters advance, K and V are appended, attention.
    fn capture(&self) -> Graph {
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
        let (cache, params) = (&self.cache, &self.inputs.params);
        let graph = self.gpu.stream.capture(|stream| {
            // SAFETY: the buffers have a row for each of `MAX_LEAVES` leaves and live as long as the loop;
            // everything runs on one stream.
            unsafe {
                cache.advance(append.targets, append.count, stream.raw())?;
                cache.append(0, &append, stream.raw())?;
                cache.attend(0, &self.device_plan, &attend, params, stream.raw())
            }
        });
        graph.unwrap()
    }

    fn step(&mut self, step: u32, graph: &mut Graph) -> Verdict {
        let reshaped = step == 0 || self.reshape(step);
        // The graph advances the counters itself, so it starts from those before the step.
        let before = self.forest.lengths().to_vec();
        let pages = self.forest.extend(&self.leaves, 1).unwrap();
        let stream = &self.gpu.stream;
        let view = self.forest.view(&self.leaves).unwrap();
        if reshaped {
            self.plan_anew(&before);
        } else if pages > 0 {
            self.patch(&before);
        } else {
            self.outcome.untouched += 1;
        }
        self.new_tokens();
        let rows = (view.queries * self.heads.q_heads) as usize;
        let elements = rows * self.heads.head_dim as usize;
        self.inputs.q = normals(self.rng.random(), elements, 1.0);
        let buffers = &self.buffers;
        buffers.q.write(0, &self.inputs.q, stream).unwrap();
        buffers.out.fill_bytes(u8::MAX, stream).unwrap();
        buffers.lse.fill_bytes(u8::MAX, stream).unwrap();
        // SAFETY: all that the graph uses is this loop's.
        unsafe { graph.launch(stream) }.unwrap();
        self.gpu.settle("the decode graph");
        self.cache.assume_lengths(self.forest.lengths()).unwrap();
        let mut outputs = Outputs::unwritten(rows, self.heads.head_dim);
        buffers.out.read(0, &mut outputs.out, stream).unwrap();
        buffers.lse.read(0, &mut outputs.lse, stream).unwrap();
        let queries: Vec<u32> = (0..view.queries).collect();
        Oracle::new(&self.inputs, &view, &queries).judge(&outputs)
    }

    /// Branches or prunes now and then; whether the tree has another shape now.
    fn reshape(&mut self, step: u32) -> bool {
        let leaves = self.leaves.len();
        let pick = self.rng.random_range(0..leaves);
        if step.is_multiple_of(13) && leaves + 2 <= MAX_LEAVES as usize {
            let parent = self.leaves.swap_remove(pick);
            let children = self.rng.random_range(2..=3);
            self.leaves.extend(self.forest.fork(parent, children).unwrap());
            return true;
        }
        if step.is_multiple_of(29) && leaves > 2 {
            let leaf = self.leaves.swap_remove(pick);
            self.forest.prune(leaf).unwrap();
            return true;
        }
        false
    }

    fn plan_anew(&mut self, lengths: &[u32]) {
        let stream = &self.gpu.stream;
        let view = self.forest.view(&self.leaves).unwrap();
        self.plan = self.planner.plan(&view).unwrap();
        self.cursor = self.forest.growth_cursor();
        self.device_plan.update(&self.plan, stream).unwrap();
        self.cache.set_counters(lengths, self.forest.tail_pages(), stream).unwrap();
        let mut targets = Vec::new();
        self.forest.live_targets(&self.leaves, &mut targets).unwrap();
        targets.resize(MAX_LEAVES as usize, NONE);
        self.buffers.targets.write(0, &targets, stream).unwrap();
        self.outcome.planned += 1;
    }

    fn patch(&mut self, lengths: &[u32]) {
        let stream = &self.gpu.stream;
        let growth = self.forest.growth_since(self.cursor);
        let growth = growth.expect("a new shape has a new plan");
        if self.plan.patch(growth, &mut Vec::new()) == Patch::Stale {
            return self.plan_anew(lengths);
        }
        self.cursor = self.forest.growth_cursor();
        let patched = self.device_plan.update(&self.plan, stream).unwrap();
        let tails = self.forest.tail_pages();
        let counted = self.cache.set_counters(lengths, tails, stream).unwrap();
        self.outcome.patch_bytes += patched + counted;
        self.outcome.patched += 1;
    }

    /// K and V of each leaf's last token, for the device and for the reference.
    fn new_tokens(&mut self) {
        let row = self.inputs.row();
        let count = self.leaves.len() * row;
        let [k, v] = [(); 2].map(|()| normals::<T>(self.rng.random(), count, 1.0));
        for (&leaf, from) in self.leaves.iter().zip((0..).step_by(row)) {
            let slot = self.forest.length_slot(leaf).unwrap() as usize;
            let token = (self.forest.lengths()[slot] - 1) % PAGE_TOKENS;
            let place = self.forest.tail_pages()[slot] * PAGE_TOKENS + token;
            let at = place as usize * row;
            self.inputs.k[at..at + row].copy_from_slice(&k[from..from + row]);
            self.inputs.v[at..at + row].copy_from_slice(&v[from..from + row]);
        }
        self.buffers.k.write(0, &k, &self.gpu.stream).unwrap();
        self.buffers.v.write(0, &v, &self.gpu.stream).unwrap();
    }
}

/// Appends all of `inputs`, poison included.
fn write_pages<T: KvElement>(gpu: &Gpu, cache: &CudaCache, inputs: &Inputs<T>) {
    let places: Vec<u32> = (0..PAGES * PAGE_TOKENS).collect();
    let (k, v) = (gpu.upload(&inputs.k), gpu.upload(&inputs.v));
    let targets = gpu.upload(&places);
    let append = Append {
        targets: targets.pointer(),
        count: places.len() as u32,
        k: k.pointer(),
        v: v.pointer(),
    };
    // SAFETY: a row of K and V for each place, all of which the cache has; the buffers outlive the wait below.
    unsafe { cache.append(0, &append, gpu.stream.raw()) }.unwrap();
    gpu.settle("appending the prompt");
}

impl<T: KvElement> Buffers<T> {
    fn new(gpu: &Gpu, heads: HeadShape) -> Self {
        let rows = MAX_LEAVES as usize;
        let kv = rows * (heads.kv_heads * heads.head_dim) as usize;
        let q = rows * (heads.q_heads * heads.head_dim) as usize;
        Self {
            q: gpu.unwritten(q),
            k: gpu.unwritten(kv),
            v: gpu.unwritten(kv),
            targets: gpu.upload(&vec![NONE; rows]),
            out: gpu.unwritten(q),
            lse: gpu.unwritten(rows * heads.q_heads as usize),
        }
    }
}

/// Each run with another kernel variant.
#[test]
fn recorded_reasoning_runs_are_decoded_as_f64_says() {
    let each = setting("DEFT_REASONING", 1) as usize;
    for gpu in Gpu::each() {
        let mut variants = variants().into_iter().cycle();
        let mut tally = Tally::default();
        for (task, text) in TASKS {
            let runs = ReasoningRun::parse(text).unwrap();
            for (run, at) in runs.iter().zip(0..each) {
                let Some((dtype, head_dim)) = variants.next() else {
                    return;
                };
                let name = format!("{task} {at} {} {dtype}_d{head_dim}", gpu.arch());
                let replay = match dtype {
                    DType::F16 => replay::<f16>,
                    _ => replay::<bf16>,
                };
                replay(&gpu, run, head_dim, &name, &mut tally);
            }
        }
        assert_eq!(tally.wrong("reasoning runs"), 0);
    }
}

fn replay<T: KvElement>(
    gpu: &Gpu,
    run: &ReasoningRun,
    head_dim: u32,
    name: &str,
    tally: &mut Tally,
) {
    let seed = setting("DEFT_SEED", 1) + u64::from(run.steps());
    let (heads, params) = random_layer(&mut SmallRng::seed_from_u64(seed), head_dim);
    let device = gpu.device.clone().into();
    gpu.watchdog.now(name);
    let replay = Recorded::<T>::new(&device, heads, params, run, seed);
    let outcome = replay.run(|step| gpu.watchdog.now(&format!("{name}, step {step}")));
    say(&format!(
        "{name}: {} steps, {} reshaped, {} patched, {} checked",
        outcome.steps, outcome.reshaped, outcome.patched, outcome.checked
    ));
    let errors = (outcome.max_rel_l2, outcome.max_lse_error);
    tally.add_errors(errors.0, errors.1, outcome.problem, name);
}
