//! What plans look like: who writes the output itself, how rows are tiled, what is refused.

use deft::plan::{CostModel, Grouping, Plan, PlanConfig, PlanError, Planner};
use deft::tree::TreeView;
use deft_tests::coverage::{assert_covers, items};
use deft_tests::views::{Node, from_nodes, random, star};
use kernels_gpu::abi::NONE;

const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

fn plan(view: &TreeView, config: PlanConfig) -> Plan {
    let plan = Planner::new(config).unwrap().plan(view).unwrap();
    assert_covers(&plan, view);
    plan
}

fn config(grouping: Grouping, shares: u32) -> PlanConfig {
    PlanConfig::new(grouping, 4, 128, shares)
}

/// `count` roots of `tokens` tokens, each with its own query.
fn roots(count: usize, tokens: u32) -> TreeView {
    let root = Node { parent: None, tokens, query: true, live: true };
    from_nodes(&vec![root; count])
}

#[test]
fn sequences_that_fit_whole_shares_need_no_merge_in_any_grouping() {
    for grouping in [Grouping::PerQuery, Grouping::Node, Grouping::Flatten] {
        let plan = plan(&roots(32, 2048), config(grouping, 16));
        assert_eq!(plan.partial_slots(), 0, "{grouping:?}");
        assert!(plan.merge_rows().is_empty());
        assert!(items(&plan).all(|item| item.record.partial_slot == NONE));
        assert!(plan.imbalance() < 1.001);
    }
}

#[test]
fn a_single_leaf_is_split_over_all_shares() {
    for grouping in [Grouping::PerQuery, Grouping::Flatten] {
        let plan = plan(&roots(1, 64 * 64), config(grouping, 16));
        assert_eq!(plan.partial_slots(), 16);
        assert!(items(&plan).all(|item| item.segments[0].page_count == 4));
    }
}

#[test]
fn per_query_leaves_no_more_partials_than_its_cuts_need() {
    let plan = plan(&star(4000, 20, 200), config(Grouping::PerQuery, 16));
    // 16 shares make 15 cuts; each splits at most one query's path in two.
    assert!(plan.partial_slots() <= 2 * 15);
    assert!(items(&plan).all(|item| item.record.query_count == 1));
    assert!(plan.imbalance() < 1.01);
}

#[test]
fn a_small_tree_is_one_item_that_writes_the_output() {
    let plan = plan(&star(60, 4, 5), config(Grouping::Flatten, 1));
    let items: Vec<_> = items(&plan).collect();
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].segments.len(), 5);
    assert_eq!(items[0].record.partial_slot, NONE);
    let leaf = items[0].segments[3];
    assert_eq!((leaf.visible_begin(), leaf.visible_end()), (2, 3));
}

#[test]
fn a_query_in_one_item_that_others_share_still_gets_a_merge_row() {
    let plan = plan(&star(6400, 20, 64), config(Grouping::Node, 4));
    assert_eq!(plan.merge_rows().len(), 20);
    assert!(plan.merge_rows().iter().all(|row| row.slot_count == 2));
}

#[test]
fn node_chunks_hold_the_papers_128_tokens() {
    let plan = plan(&star(4000, 20, 200), config(Grouping::NodeChunk, 16));
    for item in items(&plan) {
        assert_eq!(item.segments.len(), 1);
        assert!(item.segments[0].page_count <= 2);
    }
    assert_eq!(items(&plan).count(), 32 + 20 * 2);
}

#[test]
fn rows_never_exceed_the_limit_unless_one_query_does() {
    for max_rows in [1, 16, 64, 256] {
        for seed in 0..20 {
            let view = random(seed, 300);
            for grouping in GROUPINGS {
                let mut config = config(grouping, 16);
                config.max_rows = max_rows;
                let most = (max_rows / 4).max(1);
                let plan = plan(&view, config);
                assert!(items(&plan).all(|item| item.record.query_count <= most));
            }
        }
    }
}

#[test]
fn row_tiles_of_the_same_pages_begin_in_different_shares() {
    let plan = plan(&star(64 * 128, 256, 1), config(Grouping::Flatten, 16));
    let mut first_of = std::collections::HashMap::new();
    for share in 0..plan.shares() {
        for item in plan.share(share).items() {
            for segment in item.segments {
                if item.pages(segment)[0] == 0 {
                    let queries = item.record.query_begin;
                    assert_eq!(first_of.insert(queries, share), None);
                }
            }
        }
    }
    let mut shares: Vec<_> = first_of.values().copied().collect();
    shares.sort_unstable();
    shares.dedup();
    assert!(shares.len() >= 4, "{shares:?}");
    assert_eq!(shares.len(), first_of.len());
}

#[test]
fn the_largest_nodes_are_dealt_first_and_evenly() {
    let tokens = [640, 320, 320, 200, 200, 200, 64, 64];
    let nodes: Vec<_> =
        tokens.map(|tokens| Node { parent: None, tokens, query: true, live: false }).to_vec();
    let plan = plan(&from_nodes(&nodes), config(Grouping::Node, 3));
    assert!(plan.imbalance() < 1.15, "{plan}");
}

#[test]
fn planning_into_an_old_plan_gives_the_same_plan() {
    for grouping in GROUPINGS {
        let mut planner = Planner::new(config(grouping, 8)).unwrap();
        let mut reused = planner.plan(&star(4000, 100, 65)).unwrap();
        let view = random(7, 80);
        planner.plan_into(&view, &mut reused).unwrap();
        let fresh = Planner::new(config(grouping, 8)).unwrap();
        let fresh = { fresh }.plan(&view).unwrap();
        assert_eq!(reused, fresh);
    }
}

#[test]
fn a_bad_view_is_refused_and_the_plan_kept() {
    let good = star(100, 3, 10);
    let mut planner = Planner::new(config(Grouping::Flatten, 4)).unwrap();
    let mut plan = planner.plan(&good).unwrap();
    let before = plan.clone();
    let mut refuse = |change: &dyn Fn(&mut TreeView), run: u32, words: &str| {
        let mut view = good.clone();
        change(&mut view);
        let error = planner.plan_into(&view, &mut plan).unwrap_err();
        assert!(matches!(error, PlanError::BadRun { run: r, .. } if r == run), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(plan, before);
    };
    refuse(&|v| v.runs[1].parent = Some(3), 1, "not on the path");
    refuse(&|v| v.runs[2].parent = Some(1), 2, "its queries");
    refuse(&|v| v.runs[1].queries = 0..9, 1, "its queries");
    refuse(&|v| v.runs[3].queries = 1..2, 3, "its queries");
    refuse(&|v| v.runs[2].pages = 9..10, 2, "in the view's pages");
    refuse(&|v| v.runs[0].tokens = u32::MAX, 0, "as many pages");
    refuse(&|v| v.runs[1].mask = Some(0), 1, "in the view's masks");
    refuse(
        &|v| {
            v.masks.push(1 << 10);
            v.runs[1].mask = Some(0);
        },
        1,
        "tokens that do not exist",
    );
}

#[test]
fn views_without_queries_and_unusable_configurations_are_refused() {
    let mut planner = Planner::new(config(Grouping::Flatten, 4)).unwrap();
    let error = planner.plan(&TreeView::default()).unwrap_err();
    assert_eq!(error.to_string(), "the view has 0 queries; a plan holds 1 to 65535");
    let mut zero = config(Grouping::Flatten, 0);
    let error = Planner::new(zero).unwrap_err().to_string();
    assert_eq!(error, "shares is 0; it must be between 1 and 65536");
    zero.shares = 1;
    zero.cost = CostModel { bytes_per_ns: -1.0, ..CostModel::H100 };
    assert!(matches!(Planner::new(zero), Err(PlanError::BadCost { .. })));
}

#[test]
fn more_segments_than_a_program_counts_make_programs_more_than_shares() {
    // 40,000 leaves and the root for each query: 80,000 segments, of which a program counts 65,535.
    let view = star(64, 40_000, 1);
    let one = plan(&view, config(Grouping::PerQuery, 1));
    assert_eq!((one.queries(), one.shares()), (40_000, 2));
    assert_eq!(one.share_ns().len(), 2);
    let segments =
        |share| -> usize { one.share(share).items().map(|item| item.segments.len()).sum() };
    assert_eq!((segments(0), segments(1)), (65_534, 14_466));
    assert_eq!(plan(&view, config(Grouping::PerQuery, 2)).shares(), 2);
}

#[test]
fn a_run_of_more_pages_than_a_segment_counts_is_several_segments() {
    let view = star(70_000 * 64 - 5, 2, 1);
    for grouping in [Grouping::PerQuery, Grouping::Node, Grouping::Flatten] {
        let plan = plan(&view, config(grouping, 1));
        let items = plan.share(0).items().next().unwrap();
        assert!(items.segments.len() >= 3, "{plan}");
        assert!(items.segments.iter().all(|segment| segment.page_count < 1 << 16));
    }
}

#[test]
fn a_plan_prints_as_a_table_and_serialises() {
    let plan = plan(&star(60, 4, 5), config(Grouping::Flatten, 2));
    let table = plan.to_string();
    assert!(table.starts_with("Flatten: 4 queries x 4 rows in 2 shares;"), "{table}");
    assert!(table.contains("share  items direct segments  pages  rows   cost us"));
    assert_eq!(table.lines().count(), 2 + 2 + 1);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["queries"], 4);
    assert_eq!(json["words"].as_array().unwrap().len(), plan.words().len());
}
