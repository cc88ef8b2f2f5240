//! Batches in which nodes have several new tokens, a query each: prompts, chunks of prompts, drafts and decoding
//! leaves together. Each query sees its path up to its own token.

use std::collections::BTreeMap;

use deft::attention::{AttentionParams, cpu};
use deft::cache::{KvElement, PagePool};
use deft::plan::{CostModel, Grouping, HeadShape, Plan, PlanConfig, Planner};
use deft::tree::{ForestError, NodeKey, TokenForest, TreeView, ViewScratch};
use deft_tests::forests::{self, view_tokens};
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::{coverage, emulated};
use half::{bf16, f16};
use kernels_gpu::abi::{NONE, PAGE_TOKENS};
use kernels_gpu::attention::tile::max_rows;

fn random(seed: u64, most_tokens: u32) -> (TokenForest, Vec<(NodeKey, u32)>) {
    let mut forest = TokenForest::new(PagePool::new(512).unwrap());
    let (_, batch) = forests::mixture(&mut forest, seed, most_tokens);
    (forest, batch)
}

/// What each row of `batch` is to see, from the forest alone: its path up to its own token.
fn by_definition(forest: &TokenForest, batch: &[(NodeKey, u32)]) -> coverage::Coverage {
    let mut rows = Vec::new();
    for &(node, tokens) in batch {
        let length = forest.context_length(node).unwrap() as u32;
        for row in 0..tokens {
            let mut places = Vec::new();
            let end = length - (tokens - 1 - row);
            forest.path_targets(node, 0..end, &mut places).unwrap();
            let mut seen = BTreeMap::<u32, u64>::new();
            for place in places {
                *seen.entry(place / PAGE_TOKENS).or_default() |= 1 << (place % PAGE_TOKENS);
            }
            rows.push(seen);
        }
    }
    rows
}

fn plans(view: &TreeView, heads: HeadShape, grouping: Grouping) -> Vec<Plan> {
    let settings = [(1, max_rows(heads.head_dim)), (5, 16), (16, 7), (13, 64)];
    let plan = |(shares, rows)| {
        let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
        config.max_rows = rows;
        Planner::new(config).unwrap().plan(view).unwrap()
    };
    settings.map(plan).into()
}

#[test]
fn every_query_of_a_batch_sees_its_path_up_to_its_own_token() {
    for seed in 0..150 {
        let (forest, batch) = random(seed, 300);
        let view = view_tokens(&forest, &batch);
        let wanted = by_definition(&forest, &batch);
        let seen = coverage::of_view(&view);
        assert_eq!(view.query_order.len(), wanted.len());
        for (query, &row) in view.query_order.iter().enumerate() {
            assert_eq!(seen[query], wanted[row as usize], "seed {seed}, row {row}");
        }
        let heads = heads(4, 1, 64);
        for plan in GROUPINGS.iter().flat_map(|&grouping| plans(&view, heads, grouping)) {
            coverage::assert_covers(&plan, &view);
        }
    }
}

fn check_cpu<T: KvElement>(seed: u64, heads: HeadShape) {
    let (forest, batch) = random(seed, 100);
    let params = AttentionParams::new(heads.head_dim);
    let problem = Problem::<T>::new(view_tokens(&forest, &batch), heads, params, seed);
    let mut backend = cpu::new(problem.shape(1)).unwrap();
    problem.store(&mut *backend, 0);
    for grouping in GROUPINGS {
        for plan in plans(&problem.view, heads, grouping) {
            let context = format!("seed {seed}, {grouping:?}, {} {heads:?}", T::DTYPE);
            problem.check(&mut *backend, 0, &plan, &context);
        }
    }
}

#[test]
fn the_cpu_agrees_with_the_definition_on_batches_of_prompts_drafts_and_leaves() {
    for seed in 0..6 {
        check_cpu::<f32>(seed, heads(6, 2, 64));
        check_cpu::<bf16>(seed + 100, heads(4, 4, 128));
    }
}

fn check_emulated<T: KvElement>(view: TreeView, heads: HeadShape, plan: &Plan, seed: u64) {
    let params = AttentionParams::new(heads.head_dim);
    emulated::check(&Problem::<T>::new(view, heads, params, seed), plan, seed);
}

#[test]
fn the_kernels_agree_with_the_definition_on_prompts_of_every_length_about_a_page() {
    let heads = heads(4, 1, 64);
    for (seed, tokens) in (0..).zip([2, 16, 63, 64, 65, 130]) {
        let mut forest = TokenForest::new(PagePool::new(16).unwrap());
        let root = forest.insert_root(90 + tokens).unwrap();
        let view = view_tokens(&forest, &[(root, tokens)]);
        let plan = &plans(&view, heads, Grouping::Flatten)[0];
        check_emulated::<bf16>(view, heads, plan, seed);
    }
}

#[test]
fn the_kernels_agree_with_the_definition_on_batches_of_prompts_drafts_and_leaves() {
    for seed in 0..4 {
        let (forest, batch) = random(seed + 40, 70);
        let view = view_tokens(&forest, &batch);
        let heads = [heads(8, 2, 64), heads(2, 1, 128)][seed as usize % 2];
        let plan = &plans(&view, heads, GROUPINGS[seed as usize % 4])[seed as usize % 3];
        check_emulated::<f16>(view, heads, plan, seed);
    }
}

#[test]
fn a_long_prompt_is_one_segment_and_a_diagonal_to_every_row_tile() {
    let mut forest = TokenForest::new(PagePool::new(64).unwrap());
    let root = forest.insert_root(2048).unwrap();
    let view = view_tokens(&forest, &[(root, 2048)]);
    let heads = heads(4, 1, 128);
    let mut config = PlanConfig::new(Grouping::Flatten, 4, heads.head_dim, 16);
    config.max_rows = max_rows(heads.head_dim);
    let plan = Planner::new(config).unwrap().plan(&view).unwrap();
    let items = (0..plan.shares()).flat_map(|share| plan.share(share).items());
    let (mut causal, mut whole) = (0, 0);
    for item in items {
        let diagonal = item.segments.iter().filter(|segment| segment.mask != NONE);
        assert!(diagonal.count() <= 1, "a tile of 32 queries crosses one page's diagonal");
        causal += item.segments.iter().filter(|segment| segment.mask != NONE).count();
        whole += item.segments.iter().filter(|segment| segment.mask == NONE).count();
    }
    assert_eq!(causal, 64, "64 tiles of 32 queries");
    assert!(whole <= 64 + 16, "{whole} segments of whole pages: those before each tile, and cuts");
}

#[test]
fn more_tokens_than_a_node_holds_or_none_are_refused_by_name() {
    let mut forest = TokenForest::new(PagePool::new(16).unwrap());
    let root = forest.insert_root(70).unwrap();
    let ask = |tokens| {
        forest.view_tokens_into(
            &[(root, tokens)],
            &mut ViewScratch::default(),
            &mut TreeView::default(),
        )
    };
    assert!(matches!(ask(71), Err(ForestError::TokenRange { end: 71, length: 70, .. })));
    assert!(matches!(ask(0), Err(ForestError::Empty { .. })));
    assert_eq!(ask(70), Ok(()));
}

/// A plan for Llama-3-8B's heads on an H100.
fn plan_8b(view: &TreeView) -> Plan {
    let mut config = PlanConfig::new(Grouping::Flatten, 4, 128, 16);
    config.max_rows = max_rows(128);
    Planner::new(config).unwrap().plan(view).unwrap()
}

#[test]
fn a_prompt_is_cut_evenly_and_takes_about_its_flops() {
    for tokens in [2048, 8192] {
        let mut forest = TokenForest::new(PagePool::new(128).unwrap());
        let root = forest.insert_root(tokens).unwrap();
        let plan = plan_8b(&view_tokens(&forest, &[(root, tokens)]));
        assert!(plan.imbalance() < 1.05, "{tokens} tokens: {plan}");
        // Two products of half a square, 16 shares a KV head; a tile's last pages are computed whole.
        let flops = 2.0 * 2.0 * f64::from(tokens).powi(2) / 2.0 * 4.0 * 128.0;
        let least_ns = flops / 16.0 / CostModel::H100.flops_per_ns;
        let ns = plan.predicted_ns() as f64 - CostModel::H100.launch_ns;
        assert!(ns < 1.15 * least_ns, "{tokens} tokens: {ns} against {least_ns}");
    }
}

#[test]
fn a_chunk_below_a_long_prefix_is_cut_evenly_beside_decoding_leaves() {
    let mut forest = TokenForest::new(PagePool::new(600).unwrap());
    let root = forest.insert_root(30_000).unwrap();
    let nodes = forest.fork(root, 9).unwrap();
    forest.extend(&nodes[..8], 50).unwrap();
    forest.extend(&nodes[8..], 512).unwrap();
    let mut batch: Vec<_> = nodes.iter().map(|&node| (node, 1)).collect();
    batch[8].1 = 512;
    let view = view_tokens(&forest, &batch);
    let plan = plan_8b(&view);
    coverage::assert_covers(&plan, &view);
    assert!(plan.imbalance() < 1.05, "{plan}");
}
