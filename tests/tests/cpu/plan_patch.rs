//! A patched plan shows every query what a plan from scratch would.

use deft::cache::PagePool;
use deft::plan::{Grouping, Patch, Plan, PlanConfig, Planner};
use deft::tree::{DraftNode, NodeKey, TokenForest};
use deft_tests::coverage::{assert_covers, lengths, of_plan, of_view};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

fn grown_star(leaves: usize, tokens: u32) -> (TokenForest, Vec<NodeKey>) {
    let mut forest = TokenForest::new(PagePool::new(1 << 16).unwrap());
    let root = forest.insert_root(700).unwrap();
    let leaves = forest.fork(root, leaves).unwrap();
    if tokens > 0 {
        forest.extend(&leaves, tokens).unwrap();
    }
    (forest, leaves)
}

fn planner(grouping: Grouping) -> Planner {
    Planner::new(PlanConfig::new(grouping, 4, 128, 16)).unwrap()
}

/// Asserts that a copy of `before`, updated in the `dirty` ranges alone, is `after`.
fn assert_dirty_is_all(before: &Plan, after: &Plan, dirty: &[std::ops::Range<u32>]) {
    let mut words = before.words().to_vec();
    for range in dirty {
        let range = range.start as usize..range.end as usize;
        words[range.clone()].copy_from_slice(&after.words()[range]);
    }
    assert_eq!(words, after.words());
    assert!(dirty.len() <= after.shares() as usize);
}

/// A forest of some trees, forked at random and one in three with a draft below; the nodes that ask:
/// all leaves, and the drafts.
fn random_forest(seed: u64) -> (TokenForest, Vec<NodeKey>, Vec<NodeKey>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut forest = TokenForest::new(PagePool::new(1 << 16).unwrap());
    let mut leaves = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        leaves.push(forest.insert_root(rng.random_range(0..400)).unwrap());
    }
    for _ in 0..rng.random_range(0..12) {
        let at = rng.random_range(0..leaves.len());
        let node = leaves.swap_remove(at);
        leaves.extend(forest.fork(node, rng.random_range(1..6)).unwrap());
        for &leaf in &leaves {
            if rng.random_range(0..3) == 0 {
                forest.append(leaf, rng.random_range(1..140)).unwrap();
            }
        }
    }
    let mut queries = leaves.clone();
    let draft = |parent| DraftNode { parent, tokens: 1 };
    let drafts = [draft(None), draft(Some(0)), draft(Some(0)), draft(None)];
    leaves.retain(|&leaf| {
        if rng.random_range(0..3) > 0 {
            return true;
        }
        queries.extend(forest.insert_draft(leaf, &drafts).unwrap());
        false
    });
    (forest, leaves, queries)
}

proptest! {
    #[test]
    fn random_forests_stay_covered_while_their_leaves_grow(
        seed in any::<u64>(),
        steps in prop::collection::vec(1u32..40, 1..6),
        shares in prop_oneof![Just(1u32), Just(5), Just(16)],
    ) {
        for grouping in GROUPINGS {
            let (mut forest, leaves, queries) = random_forest(seed);
            let mut planner = Planner::new(PlanConfig::new(grouping, 4, 128, shares)).unwrap();
            let mut plan = planner.plan(&forest.view(&queries).unwrap()).unwrap();
            let mut cursor = forest.growth_cursor();
            for &tokens in &steps {
                if leaves.is_empty() {
                    break;
                }
                forest.extend(&leaves, tokens).unwrap();
                let growth = forest.growth_since(cursor).unwrap();
                if plan.patch(growth, &mut Vec::new()) == Patch::Stale {
                    planner.plan_into(&forest.view(&queries).unwrap(), &mut plan).unwrap();
                }
                cursor = forest.growth_cursor();
                assert_covers(&plan, &forest.view(&queries).unwrap());
            }
        }
    }

    #[test]
    fn growth_over_page_edges_is_seen_after_a_patch(
        counts in prop::collection::vec(1usize..20, 1..4),
        first in 0u32..130,
        steps in prop::collection::vec((1u32..70, any::<u64>()), 1..4),
        shares in prop_oneof![Just(1u32), Just(5), Just(16)],
        max_rows in prop_oneof![Just(8u32), Just(256)],
    ) {
        for grouping in GROUPINGS {
            let mut forest = TokenForest::new(PagePool::new(1 << 16).unwrap());
            let mut leaves = Vec::new();
            for &count in &counts {
                let root = forest.insert_root(700).unwrap();
                leaves.extend(forest.fork(root, count).unwrap());
            }
            if first > 0 {
                forest.extend(&leaves, first).unwrap();
            }
            let mut config = PlanConfig::new(grouping, 4, 128, shares);
            (config.max_rows, config.slack_pages) = (max_rows, 4);
            let mut plan = Planner::new(config).unwrap().plan(&forest.view(&leaves).unwrap()).unwrap();
            let mut cursor = forest.growth_cursor();
            let mut dirty = Vec::new();
            for &(tokens, which) in &steps {
                let grown = (0..).zip(&leaves).filter(|(i, _)| which >> (i % 64) & 1 == 1);
                let grown: Vec<_> = grown.map(|(_, &leaf)| leaf).collect();
                if grown.is_empty() {
                    continue;
                }
                forest.extend(&grown, tokens).unwrap();
                let growth = forest.growth_since(cursor).unwrap();
                let before = plan.clone();
                prop_assert_eq!(plan.patch(growth, &mut dirty), Patch::Patched);
                cursor = forest.growth_cursor();
                assert_dirty_is_all(&before, &plan, &dirty);
                assert_covers(&plan, &forest.view(&leaves).unwrap());
            }
        }
    }
}

#[test]
fn growth_within_a_page_needs_no_patch() {
    for grouping in GROUPINGS {
        let (mut forest, leaves) = grown_star(9, 65);
        let plan = planner(grouping).plan(&forest.view(&leaves).unwrap()).unwrap();
        let cursor = forest.growth_cursor();
        forest.extend(&leaves, 63).unwrap();
        assert_eq!(forest.growth_since(cursor), Some(&[][..]));
        assert_covers(&plan, &forest.view(&leaves).unwrap());
    }
}

#[test]
fn an_empty_leaf_is_seen_once_it_grows() {
    for grouping in GROUPINGS {
        let (mut forest, leaves) = grown_star(5, 0);
        let mut plan = planner(grouping).plan(&forest.view(&leaves).unwrap()).unwrap();
        let cursor = forest.growth_cursor();
        forest.extend(&leaves, 1).unwrap();
        let growth = forest.growth_since(cursor).unwrap();
        assert_eq!(plan.patch(growth, &mut Vec::new()), Patch::Patched);
        assert_covers(&plan, &forest.view(&leaves).unwrap());
    }
}

#[test]
fn a_plan_without_room_is_stale_and_unchanged() {
    for grouping in GROUPINGS {
        let (mut forest, leaves) = grown_star(9, 64);
        let view = forest.view(&leaves).unwrap();
        let mut plan = planner(grouping).plan(&view).unwrap();
        let before = plan.clone();
        let cursor = forest.growth_cursor();
        forest.extend(&leaves[..8], 1).unwrap();
        forest.append(leaves[8], 3 * 64).unwrap();
        let mut dirty = Vec::new();
        let growth = forest.growth_since(cursor).unwrap();
        assert_eq!(plan.patch(growth, &mut dirty), Patch::Stale);
        assert_eq!(plan, before);
        assert!(dirty.is_empty());
        assert_eq!(of_plan(&plan, &lengths(&view)), of_view(&view));
    }
}

#[test]
fn growth_of_nodes_that_no_query_of_the_plan_sees_is_passed_over() {
    let (mut forest, leaves) = grown_star(9, 64);
    let mut plan = planner(Grouping::Flatten).plan(&forest.view(&leaves[..4]).unwrap()).unwrap();
    let before = plan.clone();
    let cursor = forest.growth_cursor();
    forest.extend(&leaves[4..], 640).unwrap();
    let growth = forest.growth_since(cursor).unwrap();
    assert_eq!(plan.patch(growth, &mut Vec::new()), Patch::Patched);
    assert_eq!(plan, before);
}
