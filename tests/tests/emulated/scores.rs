//! The score kernels' own source, on the emulator, against the definition of scores.

use deft::attention::AttentionParams;
use deft::cache::{DType, KvElement};
use deft::plan::{Grouping, HeadShape, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::emulated::{Emulated, dtype_of_variants};
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views;
use half::{bf16, f16};
use kernels_gpu::Arch;
use kernels_gpu::attention::tile::max_rows;
use rayon::prelude::*;

/// Checks `view` on the emulated kernels of every architecture, cut into `shares`.
fn check(view: TreeView, heads: HeadShape, cut: (Grouping, u32), seed: u64) {
    let params = AttentionParams::new(heads.head_dim);
    match dtype_of_variants(heads.head_dim) {
        DType::Bf16 => check_problem(&Problem::<bf16>::new(view, heads, params, seed), cut, seed),
        _ => check_problem(&Problem::<f16>::new(view, heads, params, seed), cut, seed),
    }
}

fn check_problem<T: KvElement>(
    problem: &Problem<T>,
    (grouping, shares): (Grouping, u32),
    seed: u64,
) {
    let heads = problem.inputs.heads;
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
    config.max_rows = max_rows(heads.head_dim);
    let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
    let visible = problem.visible(|row| row % 5 == 4);
    for arch in Arch::ALL {
        let mut backend = Emulated::new(problem.shape(2), seed).with_kernels(arch);
        problem.store(&mut backend, 1);
        let context = format!("{}, seed {seed}, {grouping:?}, {} {heads:?}", arch.name(), T::DTYPE);
        problem.check_scores(&mut backend, 1, &plan, &visible, &context);
    }
}

#[test]
fn a_prefix_of_many_queries_is_scored_by_the_definition_in_every_head_dimension() {
    let mut cases = Vec::new();
    for dim in [64, 128, 256] {
        for (queries, group) in [(1, 1), (13, 4), (40, 3)] {
            cases.push((cases.len() as u64, dim, queries, group));
        }
    }
    cases.into_par_iter().for_each(|(seed, dim, queries, group)| {
        let view = views::star(200, queries, 3);
        check(view, heads(group, 1, dim), (Grouping::Flatten, 3), seed);
    });
}

#[test]
fn random_forests_are_scored_by_the_definition_under_every_grouping() {
    let shapes = [heads(4, 2, 64), heads(3, 1, 128), heads(2, 2, 256), heads(8, 1, 128)];
    let cases = (0..).zip(shapes).flat_map(|(seed, shape)| GROUPINGS.map(|by| (seed, shape, by)));
    let cases: Vec<(u64, HeadShape, Grouping)> = cases.collect();
    cases.into_par_iter().for_each(|(seed, shape, grouping)| {
        check(views::random(seed, 16), shape, (grouping, 1 + seed as u32), seed);
    });
}
