//! Token forests against a naive model: random operations, and hostile ones.

mod hostile;
mod model;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use world::{Op, Pick, World};

/// No files, so that the tests also run where there is no file system (miri).
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Counts near the edges of pages, and small ones.
fn tokens() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..6,
        2 => 60u32..68,
        1 => 120u32..140,
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    (any::<Index>(), prop::bool::weighted(0.2)).prop_map(|(index, any)| Pick { index, any })
}

fn draft() -> impl Strategy<Value = Vec<(Option<Index>, u32)>> {
    let node = (prop::option::weighted(0.8, any::<Index>()), 1u32..4);
    let long = (prop::option::weighted(0.5, any::<Index>()), 20u32..90);
    prop_oneof![4 => vec(node, 1..12), 1 => vec(long, 1..5)]
}

fn op() -> impl Strategy<Value = Op> {
    let leaves = vec(any::<Index>(), 0..8);
    prop_oneof![
        4 => tokens().prop_map(Op::Root),
        16 => (pick(), 0usize..5).prop_map(|(node, n)| Op::Fork(node, n)),
        12 => (pick(), tokens()).prop_map(|(node, k)| Op::Append(node, k)),
        16 => (leaves, tokens(), prop::bool::weighted(0.9))
            .prop_map(|(leaves, k, distinct)| Op::Extend { leaves, k, distinct }),
        6 => (pick(), tokens()).prop_map(|(node, k)| Op::Shrink(node, k)),
        8 => (pick(), draft()).prop_map(|(node, draft)| Op::Draft(node, draft)),
        8 => (pick(), vec(any::<Index>(), 0..20)).prop_map(|(node, parents)| Op::Grow(node, parents)),
        6 => vec(any::<Index>(), 0..4).prop_map(Op::PruneDraft),
        2 => pick().prop_map(Op::Gather),
        8 => (pick(), vec(any::<Index>(), 0..5)).prop_map(|(node, path)| Op::Accept(node, path)),
        8 => pick().prop_map(Op::Merge),
        4 => pick().prop_map(Op::Prune),
        1 => pick().prop_map(Op::RemoveTree),
    ]
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn every_query_sees_the_tokens_of_its_path(
        pages in 1u32..60,
        root in tokens(),
        ops in vec((op(), vec(any::<Index>(), 1..6)), 1..100),
    ) {
        let mut world = World::new(pages);
        world.run(Op::Root(root));
        for (op, queries) in ops {
            world.run(op);
            world.check(&queries);
        }
        world.tear_down();
    }

    #[test]
    fn accepting_in_an_exhausted_pool_moves_the_right_tokens(
        length in 0u32..130,
        draft in draft(),
        pruned in vec(any::<Index>(), 0..4),
        path in vec(any::<Index>(), 0..8),
        index in any::<Index>(),
    ) {
        let tokens: u32 = draft.iter().map(|(_, tokens)| tokens).sum();
        let mut world = World::new(length.div_ceil(64) + tokens.div_ceil(64));
        let root = Pick { index, any: false };
        world.run(Op::Root(length));
        world.run(Op::Draft(root, draft));
        prop_assert_eq!(world.free_pages(), 0);
        for index in pruned {
            world.prune_draft(index);
            world.fill_pool();
            world.check(&path);
        }
        world.run(Op::Accept(root, path));
        world.check(&[]);
    }

    #[test]
    fn merging_a_chain_in_an_exhausted_pool_moves_the_right_tokens(
        nodes in vec(tokens(), 1..12),
        split in 0usize..4,
        index in any::<Index>(),
        picks in vec(any::<Index>(), 1..6),
    ) {
        let pages: u32 = nodes.iter().map(|length| length.div_ceil(64)).sum();
        let mut world = World::new(pages.max(1));
        let root = Pick { index, any: false };
        world.run(Op::Root(nodes[0]));
        world.lengthen_chain(&nodes[1..], split);
        prop_assert!(world.free_pages() == 0 || pages == 0);
        world.run(Op::Merge(root));
        world.check(&picks);
        world.merge_from_the_top();
        world.check(&picks);
        world.fill_pool();
        world.check(&picks);
    }
}

proptest! {
    #![proptest_config(config(30))]

    #[test]
    fn beams_see_their_paths_and_leave_no_page(
        pages in 2u32..12,
        root in tokens(),
        steps in vec((vec(any::<Index>(), 1..70), vec(any::<Index>(), 0..3), any::<Index>()), 1..9),
    ) {
        let mut world = World::new(pages);
        world.run(Op::Root(root));
        for (parents, pruned, index) in steps {
            let pick = Pick { index, any: false };
            world.run(Op::Grow(pick, parents));
            for leaf in pruned {
                world.run(Op::PruneDraft(vec![leaf]));
            }
            if index.index(5) == 0 {
                world.run(Op::Gather(pick));
            }
            world.check(&[index]);
        }
        world.tear_down();
    }
}
