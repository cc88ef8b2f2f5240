//! Batches of prompts, parts of prompts, drafts and decoding leaves on a GPU, their rows in any order, against f64: with
//! rows in the host's memory, and bit for bit the same with rows on the device.
//!
//! Without a GPU it says so and passes. `DEFT_FORESTS=500` is the long run.

use deft::attention::{AttentionParams, Backend, RotaryTable};
use deft::cache::{CacheShape, DType, HEAD_DIMS, KvElement, PagePool};
use deft::cuda::{CudaBackend, DeviceBuffer, DeviceRows, Stream};
use deft::plan::{HeadShape, Planner};
use deft::tree::{NodeKey, TokenForest};
use deft::{Batch, Kv, Out, TreeCache};
use deft_tests::forests::{self, pick, view_tokens};
use deft_tests::gpu::{Gpu, Tally, random_layer, setting, wanted};
use deft_tests::inputs::{Inputs, normals, unwritten};
use deft_tests::oracle::{Oracle, Outputs, sample};
use deft_tests::problem::{GROUPINGS, Problem};
use half::{bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Queries of a batch that are compared with f64.
const CHECKED: u32 = 40;
/// Most rows of a node.
const MOST_TOKENS: u32 = 300;
/// Layers of a cache; the last is used.
const LAYERS: u32 = 2;
const PAGES: u32 = 512;
/// More than a mixture's longest path has.
const POSITIONS: u32 = 2048;

/// Runs `case` on every GPU with random types and head dimensions, and asserts that nothing was wrong.
macro_rules! on_every_gpu {
    ($case:ident) => {
        for gpu in Gpu::each() {
            let mut tally = Tally::default();
            for case in 0..setting("DEFT_FORESTS", 60) {
                let seed = setting("DEFT_SEED", 1).wrapping_mul(1_000_003) + case;
                let mut rng = SmallRng::seed_from_u64(!seed);
                let dtype = pick(&mut rng, &[DType::Bf16, DType::F16]);
                let head_dim = pick(&mut rng, &HEAD_DIMS);
                if !wanted(&format!("{dtype}_d{head_dim}")) {
                    continue;
                }
                match dtype {
                    DType::F16 => $case::<f16>(&gpu, seed, head_dim, &mut rng, &mut tally),
                    _ => $case::<bf16>(&gpu, seed, head_dim, &mut rng, &mut tally),
                }
            }
            let name = format!("{} {}", gpu.arch(), stringify!($case));
            assert_eq!(tally.wrong(&name), 0, "{name}");
        }
    };
}

#[test]
fn mixtures_agree_with_f64_under_every_grouping() {
    on_every_gpu!(attend);
}

fn attend<T: KvElement>(
    gpu: &Gpu,
    seed: u64,
    head_dim: u32,
    rng: &mut SmallRng,
    tally: &mut Tally,
) {
    let (heads, params) = random_layer(rng, head_dim);
    let mut forest = TokenForest::new(PagePool::new(PAGES).unwrap());
    let (_, batch) = forests::mixture(&mut forest, seed, MOST_TOKENS);
    let view = view_tokens(&forest, &batch);
    let problem = Problem::<T>::sampled(view, heads, params, seed, CHECKED);
    let mut backend = CudaBackend::new(&gpu.device, problem.shape(1)).unwrap();
    problem.store(&mut backend, 0);
    for grouping in GROUPINGS {
        let mut config = backend.plan_config(grouping, heads.group_size());
        config.shares = rng.random_range(1..=40);
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let what = format!(
            "mixture {seed}, {}, {grouping:?}, {} {heads:?} {params:?}, {} shares, {} queries",
            gpu.arch(),
            T::DTYPE,
            plan.shares(),
            plan.queries()
        );
        gpu.watchdog.now(&what);
        let outputs = problem.attend(&mut backend, 0, &plan);
        tally.add(&problem.judge(&outputs), &what);
    }
}

/// Rows of a batch in the host's memory.
struct HostRows<T> {
    k: Vec<T>,
    v: Vec<T>,
    q: Vec<T>,
}

#[test]
fn rows_on_the_device_give_the_bits_of_rows_on_the_host() {
    on_every_gpu!(host_and_device);
}

fn host_and_device<T: KvElement>(
    gpu: &Gpu,
    seed: u64,
    head_dim: u32,
    rng: &mut SmallRng,
    tally: &mut Tally,
) {
    let (heads, params) = random_layer(rng, head_dim);
    let mut cache = cache::<T>(gpu, heads, &params);
    let (nodes, asked) = forests::mixture(&mut cache, seed, MOST_TOKENS);
    let all = held(cache.forest(), &nodes);
    let all_view = view_tokens(cache.forest(), &all);
    let mut inputs = Inputs::<T>::of_view(&all_view, heads, params, seed);
    let view = view_tokens(cache.forest(), &asked);
    inputs.q = normals(!seed, (view.queries * heads.q_heads * head_dim) as usize, 1.0);
    let oracle = Oracle::new(&inputs, &view, &sample(view.queries, CHECKED));
    let places = places(cache.forest(), &asked);
    let others = others(cache.forest(), &all, &places, &inputs);
    let [k, v] = inputs.rows_at(&places);
    let rows = HostRows { k, v, q: inputs.q.clone() };
    let table = RotaryTable::new(head_dim, POSITIONS, 500_000.0).unwrap();
    for grouping in GROUPINGS {
        cache.set_grouping(grouping);
        let batch = cache.batch_held(&asked).unwrap();
        for table in [None, Some(&table)] {
            let what = format!(
                "mixture {seed}, {}, {grouping:?}, {} {heads:?} {params:?}, {} rows, rotated: {}",
                gpu.arch(),
                T::DTYPE,
                batch.rows(),
                table.is_some()
            );
            gpu.watchdog.now(&what);
            write_all(&mut cache, &all, &others);
            let on_device = run_device(gpu, &mut cache, &batch, &rows, table);
            write_all(&mut cache, &all, &others);
            let on_host = run_host(&mut cache, &batch, &rows, table);
            assert!(on_host.same_bits(&on_device), "{what}: other bits");
            // What is right of rotated keys the suite of writes says.
            if table.is_none() {
                tally.add(&oracle.judge(&on_device), &what);
            }
        }
    }
}

fn cache<T: KvElement>(gpu: &Gpu, heads: HeadShape, params: &AttentionParams) -> TreeCache {
    let shape = CacheShape {
        layers: LAYERS,
        kv_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        dtype: T::DTYPE,
        pages: PAGES,
    };
    let mut builder = TreeCache::builder(&gpu.device.clone().into())
        .layers(LAYERS)
        .heads(heads.q_heads, heads.kv_heads, heads.head_dim)
        .dtype(T::DTYPE)
        .capacity_bytes(u64::from(PAGES * LAYERS) * shape.padded().page_bytes())
        .scale(params.scale);
    if let Some(cap) = params.soft_cap {
        builder = builder.soft_cap(cap);
    }
    builder.build().unwrap()
}

/// The nodes with all of their tokens.
fn held(forest: &TokenForest, nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    let held = |&node: &NodeKey| (node, forest.length(node).unwrap());
    nodes.iter().map(held).collect()
}

/// Where the rows of `batch` lie: page times 64 plus token of the page.
fn places(forest: &TokenForest, batch: &[(NodeKey, u32)]) -> Vec<u32> {
    let mut places = Vec::new();
    for &(node, tokens) in batch {
        let length = forest.length(node).unwrap();
        let range = length - tokens..length;
        forest.append_targets(node, range, &mut places).unwrap();
    }
    places
}

/// K and V of all tokens but those at `places`, which have NaNs.
fn others<T: KvElement>(
    forest: &TokenForest,
    all: &[(NodeKey, u32)],
    places: &[u32],
    inputs: &Inputs<T>,
) -> [Vec<T>; 2] {
    let everywhere = self::places(forest, all);
    let row = inputs.row();
    inputs.rows_at(&everywhere).map(|mut rows| {
        for (values, place) in rows.chunks_exact_mut(row).zip(&everywhere) {
            if places.contains(place) {
                values.copy_from_slice(&unwritten(row));
            }
        }
        rows
    })
}

fn write_all<T: KvElement>(cache: &mut TreeCache, all: &[(NodeKey, u32)], [k, v]: &[Vec<T>; 2]) {
    let batch = cache.batch_held(all).unwrap();
    cache.append(LAYERS - 1, &batch, Kv::new(k, v)).unwrap();
}

fn run_host<T: KvElement>(
    cache: &mut TreeCache,
    batch: &Batch,
    host: &HostRows<T>,
    table: Option<&RotaryTable>,
) -> Outputs<T> {
    let mut kv = Kv::new(&host.k, &host.v);
    kv.rope = table;
    cache.append(LAYERS - 1, batch, kv).unwrap();
    let head_dim = cache.config().head_dim;
    let mut outputs = Outputs::unwritten(host.q.len() / head_dim as usize, head_dim);
    let results = Out::with_lse(&mut outputs.out, &mut outputs.lse);
    cache.attend(LAYERS - 1, batch, &host.q, results).unwrap();
    outputs
}

/// The same with rows on the device, which come and go on the caller's stream: nothing waits in between.
fn run_device<T: KvElement>(
    gpu: &Gpu,
    cache: &mut TreeCache,
    batch: &Batch,
    host: &HostRows<T>,
    table: Option<&RotaryTable>,
) -> Outputs<T> {
    let (k, v, q) =
        (gpu.unwritten(host.k.len()), gpu.unwritten(host.v.len()), gpu.unwritten(host.q.len()));
    let out = gpu.unwritten(host.q.len());
    let lse = gpu.unwritten(host.q.len() / cache.config().head_dim as usize);
    for (buffer, rows) in [(&k, &host.k), (&v, &host.v), (&q, &host.q)] {
        buffer.upload(0, rows, &gpu.stream).unwrap();
    }
    let mut kv = Kv::new(rows(&k, &gpu.stream), rows(&v, &gpu.stream));
    kv.rope = table;
    cache.append(LAYERS - 1, batch, kv).unwrap();
    let results = Out::with_lse(rows(&out, &gpu.stream), rows(&lse, &gpu.stream));
    cache.attend(LAYERS - 1, batch, rows(&q, &gpu.stream), results).unwrap();
    Outputs { out: gpu.download(&out), lse: gpu.download(&lse) }
}

fn rows<T: KvElement>(buffer: &DeviceBuffer<T>, stream: &Stream) -> DeviceRows<T> {
    // SAFETY: the buffer is on the cache's device and lives until its stream was waited for, when results were
    // downloaded; nobody else uses it.
    unsafe { DeviceRows::new(buffer.pointer(), buffer.len(), stream.raw()) }
}
