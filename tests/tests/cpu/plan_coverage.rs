//! Every grouping covers every forest: each query sees each of its tokens once.

use deft::plan::{Grouping, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::coverage::assert_covers;
use deft_tests::views::{random, star};
use proptest::prelude::*;

const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

fn assert_all_cover(view: &TreeView, group_size: u32, shares: u32, max_rows: u32) {
    for grouping in GROUPINGS {
        let mut config = PlanConfig::new(grouping, group_size, 128, shares);
        config.max_rows = max_rows;
        let mut planner = Planner::new(config).unwrap();
        assert_covers(&planner.plan(view).unwrap(), view);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_forests_are_covered_once(
        seed in any::<u64>(),
        max_queries in prop_oneof![Just(1u32), Just(17), Just(80), Just(300)],
        group_size in prop_oneof![Just(1u32), Just(4), Just(7), Just(16)],
        shares in prop_oneof![Just(1u32), Just(2), Just(16), Just(132)],
        max_rows in prop_oneof![Just(1u32), Just(16), Just(64), Just(256)],
    ) {
        assert_all_cover(&random(seed, max_queries), group_size, shares, max_rows);
    }
}

#[test]
fn four_thousand_queries_on_one_prompt_are_covered_once() {
    assert_all_cover(&star(300, 4096, 1), 4, 16, 256);
}

#[test]
fn a_query_without_tokens_gets_an_empty_merge_row() {
    let mut view = star(0, 2, 0);
    for run in &mut view.runs {
        run.length_slot = None;
    }
    for grouping in GROUPINGS {
        let mut planner = Planner::new(PlanConfig::new(grouping, 4, 128, 4)).unwrap();
        let plan = planner.plan(&view).unwrap();
        assert_covers(&plan, &view);
        assert_eq!(plan.merge_rows().len(), 2);
        assert!(plan.merge_rows().iter().all(|row| row.slot_count == 0));
    }
}
