//! The kernels of compacted nodes, emulated, against f64 over the rows that are left: gathered, read and moved by them.

use deft::plan::HeadShape;
use deft::{DType, Grouping, KvElement, bf16, f16};
use deft_tests::compacted::{Compacted, Thinning, random_compaction};
use deft_tests::emulated::dtype_of_variants;
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::Place;
use kernels_gpu::Arch;
use rayon::prelude::*;

fn check_forest<T: KvElement>(arch: Arch, heads: HeadShape, thinning: Thinning, seed: u64) {
    // Every other one with a second layer, whose directory begins elsewhere.
    let layers = 1 + seed as u32 / 3 % 2;
    let mut world = Compacted::<T>::on(&Place::Emulated(arch), heads, layers, 400, seed);
    let asked = world.grow_thinned(thinning);
    world.check_counters();
    let context = format!("{}, seed {seed}, {heads:?}, {}, {thinning:?}", arch.name(), T::DTYPE);
    world.check(&asked, GROUPINGS[seed as usize % 4], &context);
}

#[test]
fn random_forests_of_every_head_dim_and_ratio_agree_with_what_is_left_of_them() {
    let mut cases = Vec::new();
    for arch in Arch::ALL {
        for head_dim in [64, 128, 256] {
            for shape in [heads(1, 1, head_dim), heads(8, 2, head_dim), heads(3, 1, head_dim)] {
                let seed = cases.len() as u64;
                cases.push((seed, arch, shape, seed % 2 == 1));
            }
        }
    }
    cases.into_par_iter().for_each(|(seed, arch, shape, merges)| {
        let thinning = Thinning { keep: 15 + 20 * (seed % 4) as u32, merges };
        match dtype_of_variants(shape.head_dim) {
            DType::Bf16 => check_forest::<bf16>(arch, shape, thinning, seed),
            _ => check_forest::<f16>(arch, shape, thinning, seed),
        }
    });
}

/// 3, 20, 70 and more rows: every way in which a block's warps share rows and pages, with more cells than its ring has, and
/// heads of which one has none.
#[test]
fn items_of_any_number_of_rows_read_ragged_cells_with_biases() {
    let mut cases = Vec::new();
    for arch in Arch::ALL {
        for (queries, group, dim) in
            [(3, 1, 128), (5, 4, 128), (10, 7, 128), (5, 4, 256), (9, 4, 64)]
        {
            cases.push((cases.len() as u64, arch, queries, group, dim));
        }
    }
    cases.into_par_iter().for_each(|(seed, arch, queries, group, dim)| {
        let shape = heads(3 * group, 3, dim);
        match dtype_of_variants(dim) {
            DType::Bf16 => check_rows::<bf16>(arch, queries, shape, seed),
            _ => check_rows::<f16>(arch, queries, shape, seed),
        }
    });
}

fn check_rows<T: KvElement>(arch: Arch, queries: usize, heads: HeadShape, seed: u64) {
    let mut world = Compacted::<T>::on(&Place::Emulated(arch), heads, 1, 128, seed);
    let root = world.root(1300);
    let leaves = world.fork(root, queries);
    let thinning = Thinning { keep: 80, merges: true };
    let compaction = random_compaction(&mut world, root, thinning).unwrap();
    world.compact(root, &compaction).unwrap();
    for &leaf in &leaves {
        world.push(leaf, 2);
    }
    let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
    let context = format!("{}, {queries} queries, {heads:?}", arch.name());
    world.check(&asked, Grouping::Node, &context);
}
