//! Scores and compacted nodes on a GPU, against f64. Without a GPU it says so and passes. `DEFT_FORESTS=200` is the long
//! run.

use deft::attention::{AttentionParams, Backend};
use deft::cache::HEAD_DIMS;
use deft::cuda::CudaBackend;
use deft::plan::{HeadShape, Planner};
use deft::{DType, Grouping, KvElement, bf16, f16};
use deft_tests::compacted::{Compacted, Thinning, random_compaction};
use deft_tests::forests::pick;
use deft_tests::gpu::{Gpu, say, setting, wanted};
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views;
use deft_tests::world::{Place, decode_behind};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SHAPES: [(u32, u32); 6] = [(1, 1), (2, 4), (1, 7), (2, 8), (1, 16), (3, 3)];

/// Calls `run` for random shapes, as many as the environment says.
fn each_shape(gpu: &Gpu, what: &str, mut run: impl FnMut(DType, HeadShape, u64, &mut SmallRng)) {
    let mut cases = 0;
    for case in 0..setting("DEFT_FORESTS", 60) {
        let seed = setting("DEFT_SEED", 1).wrapping_mul(1_000_003) + case;
        let mut rng = SmallRng::seed_from_u64(!seed);
        let head_dim = pick(&mut rng, &HEAD_DIMS);
        let (kv, group) = pick(&mut rng, &SHAPES);
        let dtype = pick(&mut rng, &[DType::Bf16, DType::F16]);
        if wanted(&format!("{dtype}_d{head_dim}")) {
            run(dtype, heads(kv * group, kv, head_dim), seed, &mut rng);
            cases += 1;
        }
    }
    say(&format!("{}: {cases} {what}, none wrong", gpu.arch()));
}

fn forest<T: KvElement>(gpu: &Gpu, heads: HeadShape, thinning: Thinning, seed: u64) {
    let context = format!("{}, forest {seed}, {heads:?}, {}, {thinning:?}", gpu.arch(), T::DTYPE);
    gpu.watchdog.now(&context);
    let place = Place::Gpu(gpu.device.clone());
    let mut world = Compacted::<T>::on(&place, heads, 2, 400, seed);
    let asked = world.grow_thinned(thinning);
    world.check_counters();
    for grouping in GROUPINGS {
        world.check(&asked, grouping, &context);
    }
}

#[test]
fn random_forests_agree_with_what_is_left_of_them_under_every_grouping() {
    for gpu in Gpu::each() {
        each_shape(&gpu, "compacted forests", |dtype, heads, seed, rng| {
            let thinning = Thinning { keep: rng.random_range(5..90), merges: rng.random() };
            match dtype {
                DType::F16 => forest::<f16>(&gpu, heads, thinning, seed),
                _ => forest::<bf16>(&gpu, heads, thinning, seed),
            }
        });
    }
}

fn scored<T: KvElement>(gpu: &Gpu, heads: HeadShape, seed: u64, rng: &mut SmallRng) {
    let view = match rng.random_range(0..3) {
        0 => views::star(rng.random_range(1..2000), rng.random_range(1..70), 3),
        _ => views::random(seed, rng.random_range(2..60)),
    };
    let problem = Problem::<T>::new(view, heads, AttentionParams::new(heads.head_dim), seed);
    let backend = CudaBackend::new(&gpu.device, problem.shape(2)).unwrap();
    let mut backend: Box<dyn Backend> = Box::new(backend);
    problem.store(&mut *backend, 1);
    let every = pick(rng, &[u32::MAX, 2, 5]);
    let visible = problem.visible(|row| row % every == every - 1);
    for grouping in GROUPINGS {
        let context = format!("{}, seed {seed}, {grouping:?}, {} {heads:?}", gpu.arch(), T::DTYPE);
        gpu.watchdog.now(&context);
        let config = backend.plan_config(grouping, heads.group_size());
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        problem.check_scores(&mut *backend, 1, &plan, &visible, &context);
    }
}

#[test]
fn random_trees_are_scored_by_the_definition_under_every_grouping() {
    for gpu in Gpu::each() {
        each_shape(&gpu, "scored trees", |dtype, heads, seed, rng| match dtype {
            DType::F16 => scored::<f16>(&gpu, heads, seed, rng),
            _ => scored::<bf16>(&gpu, heads, seed, rng),
        });
    }
}

#[test]
fn a_leaf_grows_behind_rows_without_a_new_plan() {
    for gpu in Gpu::each() {
        let place = Place::Gpu(gpu.device.clone());
        let mut world = Compacted::<bf16>::on(&place, heads(8, 2, 128), 1, 200, 1);
        decode_behind(&mut world, gpu.arch(), |world, leaf| {
            let thinning = Thinning { keep: 40, merges: true };
            let compaction = random_compaction(world, leaf, thinning).unwrap();
            world.compact(leaf, &compaction).unwrap();
        });
    }
}

/// Each compaction gives the node other rows, and others the pages that it leaves.
#[test]
fn a_tree_is_read_before_and_after_each_of_its_nodes_is_compacted_again_and_again() {
    for gpu in Gpu::each() {
        let place = Place::Gpu(gpu.device.clone());
        let mut world = Compacted::<f16>::on(&place, heads(6, 3, 64), 2, 300, 2);
        let root = world.root(900);
        let leaves = world.fork(root, 5);
        for &leaf in &leaves {
            world.push(leaf, 100);
        }
        let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        for round in 0..6 {
            world.check(&asked, Grouping::Flatten, gpu.arch());
            for node in [root, leaves[round % 5]] {
                let thinning = Thinning { keep: 70, merges: round % 2 == 1 };
                if let Some(compaction) = random_compaction(&mut world, node, thinning) {
                    world.compact(node, &compaction).unwrap();
                }
            }
        }
        world.check(&asked, Grouping::Flatten, gpu.arch());
        world.check_counters();
    }
}
