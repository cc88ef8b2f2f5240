//! Nodes in formats on a GPU, against f64 over the decoded cache. Without a GPU it says so and passes.
//! `DEFT_FORESTS=200` is the long run.

use deft::cache::{HEAD_DIMS, KERNEL_HEAD_DIMS};
use deft::plan::HeadShape;
use deft::{DType, Grouping, KvElement, KvFormat, bf16, f16};
use deft_tests::coded::Coded;
use deft_tests::forests::pick;
use deft_tests::gpu::{Gpu, say, setting, wanted};
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::{Place, decode_behind};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn formats() -> [KvFormat; 5] {
    ["fp8", "fp8-token", "int4-g64", "kivi4", "kivi2"].map(|name| name.parse().unwrap())
}

/// Those that a GPU has for heads of this dimension: of padded ones it has no groups of dims.
fn formats_of(head_dim: u32) -> Vec<KvFormat> {
    let all = formats();
    all[..if KERNEL_HEAD_DIMS.contains(&head_dim) { 5 } else { 2 }].to_vec()
}

fn forest<T: KvElement>(gpu: &Gpu, heads: HeadShape, formats: &[KvFormat], seed: u64) {
    let context = format!("{}, forest {seed}, {heads:?}, {} in {formats:?}", gpu.arch(), T::DTYPE);
    gpu.watchdog.now(&context);
    let mut world = Coded::<T>::on(&Place::Gpu(gpu.device.clone()), heads, 1, 400, seed);
    let asked = world.grow_sealed(formats);
    world.check_counters();
    for grouping in GROUPINGS {
        world.check(&asked, grouping, &context);
    }
    let (node, _) = asked[0];
    let length = world.cache.forest().context_length(node).unwrap() as u32;
    world.check_export(node, length / 3..length);
}

#[test]
fn random_forests_agree_with_the_decoded_cache_under_every_grouping() {
    for gpu in Gpu::each() {
        let mut forests = 0;
        for case in 0..setting("DEFT_FORESTS", 60) {
            let seed = setting("DEFT_SEED", 1).wrapping_mul(1_000_003) + case;
            let mut rng = SmallRng::seed_from_u64(!seed);
            let head_dim = pick(&mut rng, &HEAD_DIMS);
            let (kv, group) = pick(&mut rng, &[(1, 1), (2, 4), (1, 7), (2, 8), (1, 16)]);
            let dtype = pick(&mut rng, &[DType::Bf16, DType::F16]);
            if !wanted(&format!("{dtype}_d{head_dim}")) {
                continue;
            }
            let all = formats_of(head_dim);
            let one = [pick(&mut rng, &all)];
            let formats = if rng.random() { &all[..] } else { &one };
            let shape = heads(kv * group, kv, head_dim);
            match dtype {
                DType::F16 => forest::<f16>(&gpu, shape, formats, seed),
                _ => forest::<bf16>(&gpu, shape, formats, seed),
            }
            forests += 1;
        }
        say(&format!("{}: {forests} forests of formats, none wrong", gpu.arch()));
    }
}

#[test]
fn a_leaf_grows_behind_sealed_pages_without_a_new_plan() {
    for gpu in Gpu::each() {
        let place = Place::Gpu(gpu.device.clone());
        let mut world = Coded::<bf16>::on(&place, heads(8, 2, 128), 1, 200, 1);
        decode_behind(&mut world, gpu.arch(), |world, leaf| {
            assert_eq!(world.seal(leaf, formats()[0]), 2);
        });
    }
}

/// Sealing changes which launches a plan takes: the room of the plan before does not do.
#[test]
fn a_tree_is_read_before_and_after_each_of_its_nodes_is_sealed_and_made_native_again() {
    for gpu in Gpu::each() {
        let place = Place::Gpu(gpu.device.clone());
        let mut world = Coded::<f16>::on(&place, heads(4, 1, 64), 1, 300, 2);
        let root = world.root(400);
        let leaves = world.fork(root, 5);
        for &leaf in &leaves {
            world.push(leaf, 100);
        }
        let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let check = |world: &mut Coded<f16>| world.check(&asked, Grouping::Flatten, gpu.arch());
        check(&mut world);
        for (node, format) in [(root, formats()[0]), (leaves[1], formats()[1])] {
            assert!(world.seal(node, format) > 0);
            check(&mut world);
        }
        for node in [root, leaves[1]] {
            assert!(world.seal(node, KvFormat::Native) > 0);
            check(&mut world);
        }
    }
}
