//! What a GPU writes to its cache through host slices: appended, rotated, moved, imported and exported, bit by bit
//! against the CPU; and attention over it.
//!
//! Without a GPU it says so and passes.

use deft::attention::cpu;
use deft::attention::{Backend, Counters, RotaryTable, Rotation};
use deft::cache::{CacheShape, DType, KvElement, PagedOrder, PagedTable};
use deft::cuda::CudaBackend;
use deft::plan::{Grouping, HeadShape, Planner};
use deft::tree::TreeView;
use deft::{Device, TreeCache};
use deft_tests::forests::{self, pick};
use deft_tests::gpu::{Gpu, random_layer, setting, variants};
use deft_tests::inputs::normals;
use deft_tests::problem::{Problem, heads};
use deft_tests::transfers::{Inspect, Sequence, assert_same, bits, check_append_rotated, rows};
use half::{bf16, f16};
use kernels_gpu::abi::{APPEND_LIVE, PAGE_TOKENS, TokenMove};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Layers of a cache; the last is used, those before must stay as they are.
const LAYERS: u32 = 2;
const PAGES: u32 = 9;
const POSITIONS: u32 = 5000;
const MOVES: u32 = 60;
/// Queries that are compared.
const CHECKED: u32 = 12;
/// Cases of each kernel variant.
const CASES: u64 = 3;

/// Runs `case` on every GPU with every kernel variant.
macro_rules! on_every_gpu {
    ($case:ident) => {
        for gpu in Gpu::each() {
            for (dtype, head_dim) in variants() {
                for case in 0..CASES {
                    let seed = setting("DEFT_SEED", 1) + u64::from(head_dim) + case;
                    let mut rng = SmallRng::seed_from_u64(seed);
                    gpu.watchdog.now(&format!("{dtype}_d{head_dim}, case {case}"));
                    match dtype {
                        DType::F16 => $case::<f16>(&gpu, head_dim, &mut rng),
                        _ => $case::<bf16>(&gpu, head_dim, &mut rng),
                    }
                }
            }
        }
    };
}

#[test]
fn a_forest_that_was_appended_and_moved_is_attended_to_as_f64_says() {
    on_every_gpu!(append_move_attend);
}

fn append_move_attend<T: KvElement>(gpu: &Gpu, head_dim: u32, rng: &mut SmallRng) {
    let (heads, params) = random_layer(rng, head_dim);
    let view = forests::random(rng.random());
    let mut problem = Problem::<T>::sampled(view, heads, params, rng.random(), CHECKED);
    let shape = problem.shape(LAYERS);
    let mut backend = CudaBackend::new(&gpu.device, shape).unwrap();
    problem.store(&mut backend, LAYERS - 1);
    assert_holds(&backend, &problem, "append");
    let moves = random_moves(&problem.view, rng);
    backend.copy(&moves).unwrap();
    problem.move_tokens(&moves, CHECKED);
    // Moves are of all layers; the first one is zero and stays so.
    assert_holds(&backend, &problem, "copy");
    let config = backend.plan_config(Grouping::Flatten, heads.group_size());
    let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
    // After the first time the plan is on the device.
    for _ in 0..2 {
        let context = format!("{heads:?} {params:?}");
        problem.check(&mut backend, LAYERS - 1, &plan, &context);
    }
}

/// Asserts that the last layer is as in `problem`, poison included, and the others zero.
fn assert_holds<T: KvElement>(backend: &CudaBackend, problem: &Problem<T>, what: &str) {
    let (shape, pool) = (problem.shape(LAYERS), backend.pool());
    let others = &pool[..pool.len() / LAYERS as usize * (LAYERS as usize - 1)];
    let written = others.iter().position(|&bits| bits != 0);
    assert_eq!(written, None, "{what}: an element of another layer was written");
    let found = rows(&shape, &pool, LAYERS - 1);
    let right = kept(&problem.inputs.k, &problem.inputs.v);
    assert_same(
        found.each_ref().map(|x| &x[..]),
        right.each_ref().map(|x| &x[..]),
        &format!("{what}, {shape:?}"),
    );
}

/// What the cache keeps of K and V, `[places, kv_heads, head_dim]`: where eight dims of V hold what is not finite they are
/// zeros, and the same dims of K are NaN, so that no other row can get at it.
fn kept<T: KvElement>(k: &[T], v: &[T]) -> [Vec<u16>; 2] {
    let [mut kept_k, mut kept_v] = [k, v].map(|rows| bits(rows).to_vec());
    let chunks = kept_k.chunks_exact_mut(8).zip(kept_v.chunks_exact_mut(8));
    for ((kept_k, kept_v), v) in chunks.zip(v.chunks_exact(8)) {
        if v.iter().any(|v| !v.to_f32().is_finite()) {
            kept_k.fill(0x7fff);
            kept_v.fill(0);
        }
    }
    [kept_k, kept_v]
}

/// Moves between tokens that exist, some onto sources of former moves.
fn random_moves(view: &TreeView, rng: &mut SmallRng) -> Vec<TokenMove> {
    let mut places = Vec::new();
    for run in &view.runs {
        for token in 0..run.tokens {
            let page = view.pages[(run.pages.start + token / PAGE_TOKENS) as usize];
            places.push(page * PAGE_TOKENS + token % PAGE_TOKENS);
        }
    }
    if places.is_empty() {
        return Vec::new();
    }
    // A target is never the source of a later move: the order the forest gives them in, too.
    let (mut written, mut moves) = (Vec::new(), Vec::new());
    for _ in 0..MOVES {
        let (from, to) = (pick(rng, &places), pick(rng, &places));
        if from != to && !written.contains(&from) {
            written.push(to);
            moves.push(TokenMove { from, to });
        }
    }
    moves
}

#[test]
fn rotated_keys_and_foreign_pages_are_the_very_bits_of_the_cpu() {
    on_every_gpu!(rotate_import_export);
}

fn rotate_import_export<T: KvElement>(gpu: &Gpu, head_dim: u32, rng: &mut SmallRng) {
    let (heads, _) = random_layer(rng, head_dim);
    let shape = CacheShape {
        layers: LAYERS,
        kv_heads: heads.kv_heads,
        head_dim,
        dtype: T::DTYPE,
        pages: PAGES,
    };
    let mut cpu = cpu::new(shape).unwrap();
    let mut cuda = CudaBackend::new(&gpu.device, shape).unwrap();
    let table = RotaryTable::new(head_dim, POSITIONS, 500_000.0).unwrap();
    // Places by number, and the last row to a node that grows.
    let mut targets = random_places(PAGES - 1, rng);
    targets.push(APPEND_LIVE);
    let counters = Counters {
        lengths: &[rng.random_range(1..=500)],
        tail_pages: &[PAGES - 1],
        directory: None,
        residues: None,
    };
    let positions = targets.iter().map(|_| rng.random_range(0..POSITIONS));
    let rotation = Rotation { table: &table, positions: &positions.collect::<Vec<_>>() };
    let elements = targets.len() * shape.row_elements();
    let [k, v] = [(); 2].map(|()| normals::<T>(rng.random(), elements, 1.0));
    check_append_rotated(&mut *cpu, &mut cuda, &targets, counters, [&k, &v], rotation);
    for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
        for page_size in [1, 16, rng.random_range(2..=100)] {
            let places = random_places(PAGES, rng);
            // In any order, with some pages of others between them.
            let needed = places.len().div_ceil(page_size as usize);
            let mut pages: Vec<u32> = (0..needed as u32 + 3).collect();
            pages.shuffle(rng);
            pages.truncate(needed);
            let sequence = Sequence::<T>::new(&shape, page_size, pages, places, 3, rng.random());
            sequence.check(order, &mut *cpu, &mut cuda);
        }
    }
}

/// Some of the places of `pages` pages, in any order, none twice.
fn random_places(pages: u32, rng: &mut SmallRng) -> Vec<u32> {
    let mut places: Vec<u32> = (0..pages * PAGE_TOKENS).collect();
    places.shuffle(rng);
    places.truncate(rng.random_range(1..=places.len()));
    places
}

#[test]
fn a_path_comes_and_goes_in_both_orders_on_the_gpu() {
    on_every_gpu!(path_on_the_gpu);
}

fn path_on_the_gpu<T: KvElement>(gpu: &Gpu, head_dim: u32, rng: &mut SmallRng) {
    let (heads, _) = random_layer(rng, head_dim);
    path_there_and_back::<T>(&gpu.device.clone().into(), heads, rng);
}

#[test]
fn a_path_comes_and_goes_in_both_orders_on_the_cpu() {
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..8 {
        path_there_and_back::<bf16>(&Device::cpu(), heads(6, 3, 64), &mut rng);
        path_there_and_back::<f16>(&Device::cpu(), heads(6, 3, 128), &mut rng);
    }
}

/// Imports a sequence into a path of three nodes, piece by piece in one order, and exports it in the other.
fn path_there_and_back<T: KvElement>(device: &Device, heads: HeadShape, rng: &mut SmallRng) {
    let shape = CacheShape {
        layers: LAYERS,
        kv_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        dtype: T::DTYPE,
        pages: 16,
    };
    let mut cache = TreeCache::builder(device)
        .layers(LAYERS)
        .heads(heads.q_heads, heads.kv_heads, heads.head_dim)
        .dtype(T::DTYPE)
        .capacity_bytes(u64::from(16 * LAYERS) * shape.padded().page_bytes())
        .build()
        .unwrap();
    // Three nodes of the path, and a sibling each that only takes pages.
    let mut leaf = cache.insert_root().unwrap();
    cache.extend(&[leaf], rng.random_range(1..=200)).unwrap();
    for _ in 0..2 {
        let children = cache.fork(leaf, 2).unwrap();
        cache.extend(&children, rng.random_range(1..=100)).unwrap();
        leaf = children[1];
    }
    let tokens = cache.forest().context_length(leaf).unwrap() as u32;
    let elements = tokens as usize * shape.row_elements();
    let sequence = [(); 2].map(|()| normals::<T>(rng.random(), elements, 1.0));
    for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
        let page_size = rng.random_range(1..=70);
        let mut pages: Vec<u32> = (0..tokens.div_ceil(page_size) + 3).collect();
        pages.shuffle(rng);
        let table = PagedTable { order, page_size, pages: &pages };
        let [k, v] = sequence.each_ref().map(|rows| paged(heads, &table, rows));
        // What comes second starts at a page's edge.
        let cut = rng.random_range(0..=tokens / page_size) * page_size;
        let rest = PagedTable { pages: &pages[(cut / page_size) as usize..], ..table };
        let layer = LAYERS - 1;
        cache.import(layer, leaf, cut..tokens, &rest, &k, &v).unwrap();
        cache.import(layer, leaf, 0..cut, &table, &k, &v).unwrap();
        let [mut out_k, mut out_v] = [(); 2].map(|()| vec![T::default(); k.len()]);
        cache.export(layer, leaf, 0..tokens, &table, &mut out_k, &mut out_v).unwrap();
        let what = format!("{order:?} pages of {page_size}, {tokens} tokens, {heads:?}");
        assert_same([bits(&out_k), bits(&out_v)], [bits(&k), bits(&v)], &what);
    }
}

/// `rows`, `[tokens, kv_heads, head_dim]`, in a foreign cache that is zero elsewhere.
fn paged<T: KvElement>(heads: HeadShape, table: &PagedTable<'_>, rows: &[T]) -> Vec<T> {
    let (dim, size) = (heads.head_dim as usize, table.page_size as usize);
    let kv_heads = heads.kv_heads as usize;
    let mut foreign = vec![T::default(); table.pages.len() * size * kv_heads * dim];
    for (index, vector) in rows.chunks_exact(dim).enumerate() {
        let (token, head) = (index / kv_heads, index % kv_heads);
        let (page, slot) = (table.pages[token / size] as usize, token % size);
        let at = match table.order {
            PagedOrder::Nhd => (page * size + slot) * kv_heads + head,
            _ => (page * kv_heads + head) * size + slot,
        };
        foreign[at * dim..][..dim].copy_from_slice(vector);
    }
    foreign
}
