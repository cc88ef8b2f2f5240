//! Every form a program can take, run by the attention kernels' own source on the emulator and compared
//! with attention by its definition.
//!
//! Every test first asserts that its plan has the form that it is about. In all of them the cache holds NaN
//! wherever no node has a token, outputs and partial results start out unwritten, and the emulator reports
//! races.

use deft::attention::AttentionParams;
use deft::cache::{KvElement, PagePool};
use deft::plan::{Grouping, HeadShape, Patch, Plan, PlanConfig, Planner};
use deft::tree::{DraftNode, NodeKey, TokenForest, TreeView};
use deft_tests::emulated::{self, Emulated};
use deft_tests::problem::{Problem, heads};
use deft_tests::views::{self, Node};
use half::{bf16, f16};
use kernels_gpu::Arch;
use kernels_gpu::abi::{NONE, Segment, WorkItem};
use kernels_gpu::attention::tile::{COUNTED_SEGMENTS, PROGRAM_BYTES, max_rows};

fn config(heads: HeadShape, grouping: Grouping, shares: u32) -> PlanConfig {
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
    config.max_rows = max_rows(heads.head_dim);
    config
}

fn plan(view: &TreeView, config: PlanConfig) -> Plan {
    Planner::new(config).unwrap().plan(view).unwrap()
}

/// Runs `plan` over `view` with random values, by every architecture's kernels, and compares.
fn check<T: KvElement>(view: &TreeView, heads: HeadShape, plan: &Plan, seed: u64) {
    check_with::<T>(view, heads, AttentionParams::new(heads.head_dim), plan, seed);
}

fn check_with<T: KvElement>(
    view: &TreeView,
    heads: HeadShape,
    params: AttentionParams,
    plan: &Plan,
    seed: u64,
) {
    let problem = Problem::<T>::new(view.clone(), heads, params, seed);
    emulated::check(&problem, plan, seed);
}

/// All work items, with the share they are in.
fn items(plan: &Plan) -> Vec<(u32, WorkItem)> {
    let items = |share| plan.share(share).items().map(move |i| (share, *i.record));
    (0..plan.shares()).flat_map(items).collect()
}

fn segments(plan: &Plan) -> Vec<Segment> {
    let shares = (0..plan.shares()).flat_map(|share| plan.share(share).items());
    shares.flat_map(|item| item.segments.to_vec()).collect()
}

/// Rows of the work items, share after share.
fn rows(plan: &Plan) -> Vec<u32> {
    let rows = |(_, item): &(u32, WorkItem)| item.query_count * plan.group_size();
    items(plan).iter().map(rows).collect()
}

fn node(parent: Option<usize>, tokens: u32, query: bool) -> Node {
    Node { parent, tokens, query, live: false }
}

/// A prefix, two branches below it, and below them leaves with a query each: of none, 1 or 9 tokens.
fn tree(prefix: u32, leaves: u32) -> Vec<Node> {
    let mut nodes =
        vec![node(None, prefix, false), node(Some(0), 70, false), node(Some(0), 5, false)];
    for leaf in 0..leaves {
        let parent = if leaf < leaves / 2 { 1 } else { 2 };
        let tokens = if leaf % 8 == 3 { 1 + leaf % 3 * 4 } else { 0 };
        nodes.push(Node { live: tokens > 0, ..node(Some(parent), tokens, true) });
    }
    nodes
}

/// Checks a tree whose queries are one work item.
fn check_tile<T: KvElement>(prefix: u32, queries: u32, heads: HeadShape) {
    let view = views::from_nodes(&tree(prefix, queries));
    let plan = plan(&view, config(heads, Grouping::Flatten, 1));
    assert_eq!(rows(&plan), [queries * heads.group_size()]);
    assert_eq!(items(&plan)[0].1.partial_slot, NONE);
    for seed in 0..2 {
        check::<T>(&view, heads, &plan, u64::from(prefix + queries) + 1000 * seed);
    }
}

#[test]
fn items_of_up_to_16_rows_agree_with_the_definition() {
    check_tile::<bf16>(1, 1, heads(1, 1, 64));
    check_tile::<f16>(65, 1, heads(7, 1, 64));
    check_tile::<bf16>(190, 2, heads(8, 1, 64));
    check_tile::<f16>(64, 16, heads(2, 2, 64));
    check_tile::<bf16>(129, 2, heads(14, 2, 128));
    check_tile::<f16>(63, 15, heads(1, 1, 128));
    check_tile::<bf16>(200, 4, heads(4, 1, 256));
    check_tile::<f16>(7, 3, heads(4, 4, 256));
    check_tile::<bf16>(320, 1, heads(16, 1, 128));
}

#[test]
fn items_of_17_to_64_rows_agree_with_the_definition() {
    check_tile::<bf16>(130, 17, heads(1, 1, 64));
    check_tile::<f16>(1, 9, heads(14, 2, 64));
    check_tile::<bf16>(65, 8, heads(8, 1, 128));
    check_tile::<f16>(200, 12, heads(4, 1, 128));
    check_tile::<bf16>(63, 5, heads(4, 1, 256));
    check_tile::<f16>(129, 64, heads(1, 1, 256));
}

#[test]
fn items_of_65_to_128_rows_agree_with_the_definition() {
    check_tile::<bf16>(65, 65, heads(1, 1, 64));
    check_tile::<f16>(130, 16, heads(16, 2, 64));
    check_tile::<bf16>(63, 18, heads(7, 1, 128));
    check_tile::<f16>(200, 32, heads(4, 1, 128));
}

/// 0, 1, 2 for items of up to 16, up to 64 and more rows: there is code of its own for each.
fn height(rows: u32) -> usize {
    usize::from(rows > 16) + usize::from(rows > 64)
}

#[test]
fn items_of_all_heights_follow_each_other_in_a_share() {
    let mut nodes = Vec::new();
    for (tokens, queries) in (60..).zip([3, 2, 40, 33, 100, 70, 9, 128, 20, 1]) {
        let root = nodes.len();
        nodes.push(node(None, tokens, false));
        nodes.extend((0..queries).map(|_| node(Some(root), 0, true)));
    }
    let view = views::from_nodes(&nodes);
    for dim in [64, 128] {
        let heads = heads(1, 1, dim);
        let plan = plan(&view, config(heads, Grouping::Node, 1));
        let heights: Vec<_> = rows(&plan).into_iter().map(height).collect();
        let follows = |pair: [usize; 2]| heights.windows(2).any(|window| window == pair);
        assert!((0..9).all(|pair| follows([pair / 3, pair % 3])), "{heights:?}");
        check::<bf16>(&view, heads, &plan, dim.into());
    }
}

#[test]
fn more_than_32_partial_results_of_a_query_are_merged() {
    let view = views::star(64 * 66 - 5, 2, 3);
    for (chunk_pages, slots) in [(2, 34), (1, 67)] {
        let heads = heads(2, 1, 64);
        let mut config = config(heads, Grouping::NodeChunk, 4);
        config.chunk_pages = chunk_pages;
        let plan = plan(&view, config);
        assert!(plan.merge_rows().iter().all(|row| row.slot_count == slots));
        check::<f16>(&view, heads, &plan, 3);
    }
}

#[test]
fn direct_and_partial_results_of_all_heights_agree_with_the_definition() {
    let mut seen = [[false; 2]; 3];
    for (queries, q_heads) in [(2, 4), (12, 4), (30, 4)] {
        let mut nodes = tree(500, queries);
        let alone = nodes.len();
        nodes.push(node(None, 70, false));
        nodes.extend((0..queries).map(|_| node(Some(alone), 0, true)));
        let view = views::from_nodes(&nodes);
        let heads = heads(q_heads, 1, 64);
        let plan = plan(&view, config(heads, Grouping::Node, 3));
        for ((_, item), rows) in items(&plan).iter().zip(rows(&plan)) {
            seen[height(rows)][usize::from(item.partial_slot == NONE)] = true;
        }
        check::<bf16>(&view, heads, &plan, queries.into());
    }
    assert_eq!(seen, [[true; 2]; 3]);
}

/// A chain of `length` nodes of 3 tokens each, with `queries` below it.
fn chain(length: usize, queries: usize) -> TreeView {
    let mut nodes: Vec<_> = (0..length).map(|i| node(i.checked_sub(1), 3, false)).collect();
    nodes.extend((0..queries).map(|_| node(Some(length - 1), 0, true)));
    views::from_nodes(&nodes)
}

#[test]
fn programs_too_long_for_shared_memory_are_read_from_global_memory() {
    for queries in [1, 20, 80] {
        let heads = heads(1, 1, 64);
        let view = chain(COUNTED_SEGMENTS as usize + 9, queries);
        let plan = plan(&view, config(heads, Grouping::Flatten, 1));
        assert!(plan.stride() * 4 > PROGRAM_BYTES);
        assert_eq!(items(&plan).len(), 1);
        assert!(segments(&plan).len() > COUNTED_SEGMENTS as usize);
        check::<bf16>(&view, heads, &plan, 5);
    }
    // Here even work items lie beyond, and the items of one share are many.
    let heads = heads(4, 1, 64);
    let view = views::star(30, 40, 2);
    let plan = plan(&view, config(heads, Grouping::PerQuery, 1));
    assert!(items(&plan).len() * size_of::<WorkItem>() >= PROGRAM_BYTES as usize);
    check::<f16>(&view, heads, &plan, 6);
}

/// A trunk with a draft of chains that fork: nodes of one or two tokens, several pages of them.
fn drafted(trunk: u32, draft: u32) -> TreeView {
    let mut forest = TokenForest::new(PagePool::new(64).unwrap());
    let root = forest.insert_root(trunk).unwrap();
    let nodes: Vec<_> = (0..draft)
        .map(|i| DraftNode { parent: (i > 2).then(|| i / 2 - 1), tokens: 1 + i % 2 })
        .collect();
    let mut asking = forest.insert_draft(root, &nodes).unwrap();
    asking.push(root);
    forest.view(&asking).unwrap()
}

#[test]
fn masks_of_drafts_hide_what_a_query_does_not_see() {
    let cases = [(3, 4, 64), (13, 4, 64), (100, 1, 64), (60, 2, 128)];
    for (draft, q_heads, dim) in cases {
        let heads = heads(q_heads, 1, dim);
        let view = drafted(100, draft);
        for shares in [1, 2] {
            let plan = plan(&view, config(heads, Grouping::Flatten, shares));
            assert!(segments(&plan).iter().any(|segment| segment.mask != NONE));
            check::<bf16>(&view, heads, &plan, draft.into());
        }
    }
    let heads = heads(1, 1, 256);
    let view = drafted(10, 40);
    let plan = plan(&view, config(heads, Grouping::Flatten, 1));
    check::<f16>(&view, heads, &plan, 8);
}

#[test]
fn queries_beyond_a_segments_range_do_not_see_it() {
    for (queries, q_heads) in [(8, 2), (24, 2), (60, 2)] {
        let heads = heads(q_heads, 1, 64);
        let view = views::from_nodes(&tree(64, queries));
        let plan = plan(&view, config(heads, Grouping::Flatten, 1));
        let [(_, item)] = items(&plan)[..] else {
            panic!("one item was expected");
        };
        let partly = |segment: &&Segment| {
            segment.mask == NONE
                && segment.visible_end() - segment.visible_begin() < item.query_count
        };
        assert!(segments(&plan).iter().filter(partly).count() > 2);
        check::<f16>(&view, heads, &plan, queries.into());
    }
}

/// A forest with leaves that grow.
fn growing(leaves: usize, tokens: u32) -> (TokenForest, Vec<NodeKey>) {
    let mut forest = TokenForest::new(PagePool::new(256).unwrap());
    let root = forest.insert_root(90).unwrap();
    let leaves = forest.fork(root, leaves).unwrap();
    if tokens > 0 {
        forest.extend(&leaves, tokens).unwrap();
    }
    (forest, leaves)
}

#[test]
fn a_plan_stays_right_while_leaves_grow() {
    for (count, q_heads) in [(3, 4), (10, 4), (24, 4)] {
        let (mut forest, leaves) = growing(count, 0);
        let heads = heads(q_heads, 1, 64);
        let mut view = forest.view(&leaves).unwrap();
        let mut plan = plan(&view, config(heads, Grouping::Flatten, 2));
        // Nodes that hold nothing yet: their segments have no page.
        assert!(segments(&plan).iter().any(|segment| segment.page_count == 0));
        check::<bf16>(&view, heads, &plan, 0);
        let mut dirty = Vec::new();
        for grown in [5, 59, 1] {
            let cursor = forest.growth_cursor();
            forest.extend(&leaves, grown).unwrap();
            let growth = forest.growth_since(cursor).unwrap();
            assert_eq!(plan.patch(growth, &mut dirty), Patch::Patched);
            view = forest.view(&leaves).unwrap();
            check::<bf16>(&view, heads, &plan, grown.into());
        }
    }
}

#[test]
fn a_query_that_sees_no_token_gets_zero() {
    for queries in [1, 20, 70] {
        let mut nodes = vec![node(None, 0, false)];
        nodes.extend((0..queries).map(|_| Node { live: true, ..node(Some(0), 0, true) }));
        nodes.push(node(Some(0), 3, true));
        let view = views::from_nodes(&nodes);
        for shares in [1, 3] {
            let heads = heads(1, 1, 64);
            let plan = plan(&view, config(heads, Grouping::Flatten, shares));
            check::<bf16>(&view, heads, &plan, 9);
        }
    }
}

#[test]
fn the_soft_cap_applies_in_items_of_all_heights() {
    for (queries, dim) in [(2, 128), (12, 256), (30, 64)] {
        let heads = heads(4, 1, dim);
        let params = AttentionParams { scale: 0.2, soft_cap: Some(1.5) };
        let view = views::from_nodes(&tree(130, queries));
        let plan = plan(&view, config(heads, Grouping::Flatten, 2));
        check_with::<f16>(&view, heads, params, &plan, queries.into());
    }
}

#[test]
fn results_without_lse_are_the_same_bits_under_every_schedule() {
    for (queries, q_heads) in [(3, 8), (12, 8), (16, 16)] {
        let heads = heads(q_heads, 2, 64);
        let view = views::from_nodes(&tree(200, queries));
        let plan = plan(&view, config(heads, Grouping::Flatten, 3));
        let problem = Problem::<bf16>::new(view, heads, AttentionParams::new(64), 1);
        for arch in Arch::ALL {
            let outputs = |seed| {
                let mut backend = Emulated::new(problem.shape(1), seed).with_kernels(arch);
                problem.store(&mut backend, 0);
                problem.attend_without_lse(&mut backend, 0, &plan)
            };
            let (first, name) = (outputs(0), arch.name());
            let verdict = problem.judge(&first);
            assert!(verdict.passes(), "{name}: {verdict}");
            for seed in 1..6 {
                let same = outputs(seed).same_bits(&first);
                assert!(same, "{name}: schedule {seed} gives other bits");
            }
        }
    }
}
