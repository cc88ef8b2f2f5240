//! The kernels of formats, emulated, against f64 over the decoded cache.

use deft::plan::HeadShape;
use deft::{DType, Grouping, KvElement, KvFormat, bf16, f16};
use deft_tests::coded::Coded;
use deft_tests::emulated::dtype_of_variants;
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::Place;
use kernels_gpu::Arch;
use rayon::prelude::*;

fn formats() -> [KvFormat; 5] {
    ["fp8", "fp8-token", "int4-g64", "kivi4", "kivi2"].map(|name| name.parse().unwrap())
}

/// In the element type of the head dimension.
fn check_forest(arch: Arch, heads: HeadShape, formats: &[KvFormat], seed: u64) {
    match dtype_of_variants(heads.head_dim) {
        DType::Bf16 => check_forest_of::<bf16>(arch, heads, formats, seed),
        _ => check_forest_of::<f16>(arch, heads, formats, seed),
    }
}

fn check_forest_of<T: KvElement>(arch: Arch, heads: HeadShape, formats: &[KvFormat], seed: u64) {
    let mut world = Coded::<T>::on(&Place::Emulated(arch), heads, 1, 320, seed);
    let asked = world.grow_sealed(formats);
    let context = format!("{}, seed {seed}, {heads:?}, {} in {formats:?}", arch.name(), T::DTYPE);
    world.check(&asked, GROUPINGS[seed as usize % 4], &context);
    let (node, _) = asked[0];
    let length = world.cache.forest().context_length(node).unwrap() as u32;
    world.check_export(node, length / 3..length);
}

#[test]
fn random_forests_of_every_format_head_dim_and_ratio_agree_with_the_decoded_cache() {
    let mut cases = Vec::new();
    for arch in Arch::ALL {
        for head_dim in [64, 128, 256] {
            for shape in [heads(1, 1, head_dim), heads(8, 2, head_dim), heads(7, 1, head_dim)] {
                // Two formats each, and over all cases every one.
                for _ in 0..2 {
                    let format = formats()[cases.len() % formats().len()];
                    cases.push((cases.len() as u64, arch, shape, format));
                }
            }
        }
    }
    cases.into_par_iter().for_each(|(seed, arch, shape, format)| {
        check_forest(arch, shape, &[format], seed);
    });
}

#[test]
fn forests_of_all_formats_at_once_agree_with_the_decoded_cache() {
    for (seed, arch) in (500..).zip(Arch::ALL) {
        check_forest(arch, heads(4, 2, 128), &formats(), seed);
    }
}

/// 3, 20, 64 and more rows: every way in which a block's warps share rows and pages, with more pages than its ring has.
#[test]
fn items_of_any_number_of_rows_read_pages_of_formats() {
    let mut cases = Vec::new();
    for arch in Arch::ALL {
        for (queries, group, dim) in [
            (3, 1, 128),
            (5, 4, 128),
            (10, 7, 128),
            (16, 8, 128),
            (5, 4, 256),
            (3, 1, 256),
            (7, 4, 64),
        ] {
            cases.push((cases.len() as u64, arch, queries, group, dim));
        }
    }
    cases.into_par_iter().for_each(|(seed, arch, queries, group, dim)| {
        match dtype_of_variants(dim) {
            DType::Bf16 => check_rows::<bf16>(arch, queries, heads(group, 1, dim), seed),
            _ => check_rows::<f16>(arch, queries, heads(group, 1, dim), seed),
        }
    });
}

fn check_rows<T: KvElement>(arch: Arch, queries: usize, heads: HeadShape, seed: u64) {
    let format = formats()[seed as usize % formats().len()];
    let mut world = Coded::<T>::on(&Place::Emulated(arch), heads, 1, 128, seed);
    let root = world.root(650);
    let leaves = world.fork(root, queries);
    assert_eq!(world.seal(root, format), 10);
    for &leaf in &leaves {
        world.push(leaf, 2);
    }
    let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
    let context = format!("{}, {queries} queries, {heads:?} in {format}", arch.name());
    world.check(&asked, Grouping::Node, &context);
}
