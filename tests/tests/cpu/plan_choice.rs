//! Which plan Flatten chooses: never a worse one for a share more, never one that PerQuery or Node would beat, and
//! one whose row tiles keep in step.

use deft::plan::{CostModel, Grouping, Plan, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::coverage::assert_covers;
use deft_tests::views::{Node, from_nodes, random, star};

/// Shares that row tiles divide, and shares that they do not.
const SHARES: [u32; 7] = [9, 13, 14, 15, 16, 33, 66];
/// How exact a cut is, and a draw.
const PRECISION: f64 = 1.02;
/// 64 tokens of K and V, 128 dims of 16 bits.
const PAGE_BYTES: f64 = 32_768.0;

fn plan(view: &TreeView, config: PlanConfig) -> Plan {
    let plan = Planner::new(config).unwrap().plan(view).unwrap();
    assert_covers(&plan, view);
    plan
}

fn config(grouping: Grouping, group: u32, shares: u32) -> PlanConfig {
    let mut config = PlanConfig::new(grouping, group, 128, shares);
    config.max_rows = 128;
    config
}

/// A context and drafts of one token below it, each with a query.
fn draft(context: u32, nodes: usize) -> TreeView {
    star(context, nodes, 1)
}

#[test]
fn one_share_more_never_costs_more() {
    let views = [
        draft(8_000, 31),
        draft(48_000, 31),
        draft(1_620, 180),
        star(536, 88, 60),
        star(4_000, 20, 200),
        star(8_000, 64, 100),
    ];
    let mut worst = 1.0f64;
    for view in views {
        let mut before = u64::MAX;
        for shares in 1..=40 {
            let ns = plan(&view, config(Grouping::Flatten, 8, shares)).predicted_ns();
            let rise = ns as f64 / before as f64;
            worst = worst.max(rise);
            before = before.min(ns);
        }
    }
    assert!(worst <= PRECISION, "{worst}");
}

#[test]
fn flatten_is_never_dearer_than_per_query_or_node() {
    for seed in 0..150 {
        let view = random(seed, 200);
        let group = [1, 4, 7, 16][seed as usize % 4];
        for shares in SHARES {
            let ns = |grouping| plan(&view, config(grouping, group, shares)).predicted_ns() as f64;
            let flatten = ns(Grouping::Flatten);
            assert!(flatten <= ns(Grouping::PerQuery), "seed {seed}, {shares} shares");
            assert!(flatten <= PRECISION * ns(Grouping::Node), "seed {seed}, {shares} shares");
        }
    }
}

#[test]
fn trees_that_share_nothing_get_the_plan_of_per_query() {
    let root = |tokens| Node { parent: None, tokens, query: true, live: true };
    let view = from_nodes(&[7000, 300, 4100, 900, 512, 2048, 1500, 65].map(root));
    for shares in SHARES {
        let [flatten, paths] = [Grouping::Flatten, Grouping::PerQuery]
            .map(|grouping| plan(&view, config(grouping, 4, shares)));
        assert_eq!(flatten.words(), paths.words(), "{shares} shares\n{flatten}\n{paths}");
    }
}

#[test]
fn row_tiles_keep_in_step_at_any_number_of_shares() {
    // 750 pages and two row tiles: far more than the cache keeps.
    let view = draft(48_000, 31);
    for shares in SHARES {
        let plan = plan(&view, config(Grouping::Flatten, 8, shares));
        // The cache has every page when the other tile reads it, so nothing waits for memory, which takes 1.6 times as
        // long, nor does a plan wait for what all read at once. Two lanes leave one share in nine idle.
        let costliest = *plan.share_ns().iter().max().unwrap() as f64;
        let once = view.pages.len() as f64 * PAGE_BYTES / CostModel::H100.memory_bytes_per_ns;
        let slots = plan.merge_rows().iter().map(|row| row.slot_count).max().unwrap_or(0);
        let merge_ns = CostModel::H100.merge_ns + f64::from(slots) * CostModel::H100.merge_slot_ns;
        let ns = plan.predicted_ns() as f64 - CostModel::H100.launch_ns - merge_ns;
        let most = 1.2 * (costliest.powi(3) + (once / f64::from(shares)).powi(3)).cbrt();
        assert!(ns < most, "{shares} shares: {ns}\n{plan}");
        assert!(plan.imbalance() < 1.2, "{shares} shares\n{plan}");
    }
}

#[test]
fn shares_that_follow_one_another_read_far_apart() {
    // One share: PerQuery reads the root's 64 pages for one query after the other.
    let one = plan(&star(64 * 64, 2, 1), config(Grouping::PerQuery, 4, 1));
    assert!((60..=66).contains(&one.reuse_distance()), "{one}");
    // Two: both read them at once.
    let two = plan(&star(64 * 64, 2, 1), config(Grouping::PerQuery, 4, 2));
    assert_eq!(two.reuse_distance(), 0);
    let once = plan(&star(64 * 64, 2, 1), config(Grouping::Flatten, 4, 1));
    assert_eq!(once.reuse_distance(), 0);
}

#[test]
fn more_row_tiles_than_shares_are_dealt_whole() {
    // 180 queries of 16 rows: 23 tiles of 128 rows over 26 pages, which 29 shares would cut.
    let plan = plan(&draft(1_620, 180), config(Grouping::Flatten, 16, 66));
    assert_eq!(plan.partial_slots(), 0, "{plan}");
}

#[test]
fn more_shares_than_pages_are_of_use() {
    let view = draft(600, 180);
    let pages = view.runs[0].pages.end;
    assert!(pages < 12);
    let plan = plan(&view, config(Grouping::Flatten, 16, 66));
    let busy = (0..66).filter(|&share| plan.share(share).items().len() > 0).count();
    assert!(busy > pages as usize, "{busy}");
}
