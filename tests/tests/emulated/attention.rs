//! The attention kernels' own source, on the emulator, against attention by its definition: sequences, prefixes and
//! random forests. `emulated_programs` has every form that a program can take.

use deft::attention::AttentionParams;
use deft::cache::KvElement;
use deft::plan::{Grouping, HeadShape, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::emulated;
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views::{self, Node};
use half::{bf16, f16};
use kernels_gpu::attention::tile::max_rows;
use rayon::prelude::*;

/// Checks `view` on the emulator, cut into `shares`.
fn check<T: KvElement>(
    view: TreeView,
    heads: HeadShape,
    params: AttentionParams,
    (grouping, shares): (Grouping, u32),
    seed: u64,
) {
    let problem = Problem::<T>::new(view, heads, params, seed);
    let dim = heads.head_dim;
    let mut config = PlanConfig::new(grouping, heads.group_size(), dim, shares);
    config.max_rows = max_rows(dim);
    let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
    emulated::check(&problem, &plan, seed);
}

fn one(tokens: u32) -> TreeView {
    views::from_nodes(&[Node { parent: None, tokens, query: true, live: true }])
}

#[test]
fn one_sequence_of_odd_length_agrees_with_the_definition() {
    for tokens in [1, 17, 63, 64, 65, 129] {
        let (cut, seed) = ((Grouping::Flatten, 2), tokens.into());
        let plain = AttentionParams::new;
        check::<bf16>(one(tokens), heads(4, 1, 64), plain(64), cut, seed);
        check::<f16>(one(tokens), heads(1, 1, 128), plain(128), cut, seed);
    }
}

#[test]
fn a_prefix_of_many_queries_agrees_with_the_definition_in_every_head_dimension() {
    for (seed, dim) in (0..).zip([64, 128, 256]) {
        for (queries, group) in [(3, 4), (13, 4), (40, 3)] {
            let (view, params) = (views::star(200, queries, 3), AttentionParams::new(dim));
            let cut = (Grouping::Flatten, 3);
            check::<f16>(view, heads(group, 1, dim), params, cut, seed);
        }
    }
}

/// Ratios that are no power of two: a tile's rows end within a query's heads, and 71 leave one query a tile.
#[test]
fn odd_numbers_of_query_heads_a_kv_head_agree_with_the_definition() {
    let shapes = [
        heads(5, 1, 128),
        heads(10, 2, 64),
        heads(5, 1, 256),
        heads(7, 1, 128),
        heads(12, 1, 64),
        heads(12, 1, 256),
        heads(24, 2, 128),
        heads(71, 1, 64),
        heads(71, 1, 128),
    ];
    let cases = (0..).zip(shapes).collect::<Vec<(u64, HeadShape)>>();
    cases.into_par_iter().for_each(|(seed, shape)| {
        let params = AttentionParams::new(shape.head_dim);
        for grouping in [Grouping::Flatten, Grouping::PerQuery] {
            check::<bf16>(views::random(seed, 9), shape, params, (grouping, 3), seed);
        }
        check::<f16>(views::star(130, 11, 5), shape, params, (Grouping::Flatten, 4), seed);
    });
}

/// With and without masks; every other shape has a soft cap, which comes before masks and softmax.
#[test]
fn random_forests_agree_with_the_definition_under_every_grouping() {
    let shapes = [
        heads(4, 2, 64),
        heads(3, 1, 128),
        heads(2, 2, 256),
        heads(7, 1, 64),
        heads(8, 1, 128),
        heads(1, 1, 256),
        heads(16, 1, 64),
    ];
    let shapes = (0..).zip(shapes);
    let cases = shapes.flat_map(|(seed, shape)| GROUPINGS.map(|grouping| (seed, shape, grouping)));
    let cases: Vec<(u64, HeadShape, Grouping)> = cases.collect();
    cases.into_par_iter().for_each(|(seed, shape, grouping)| {
        let plain = AttentionParams::new(shape.head_dim);
        let capped = AttentionParams { scale: 0.3, soft_cap: Some(2.0) };
        let params = [plain, capped][seed as usize % 2];
        let cut = (grouping, 1 + seed as u32 % 4);
        check::<bf16>(views::random(seed, 16), shape, params, cut, seed);
        check::<f16>(views::random(seed + 50, 24), shape, plain, cut, seed);
    });
}
