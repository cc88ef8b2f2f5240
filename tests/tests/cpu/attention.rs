//! The CPU backend against attention by its definition.

use deft::attention::{AttentionParams, cpu};
use deft::cache::KvElement;
use deft::plan::{Grouping, HeadShape, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views::{self, Node};
use half::{bf16, f16};

/// Checks `view` under every grouping and a few cuts.
fn check<T: KvElement>(view: TreeView, heads: HeadShape, params: AttentionParams, seed: u64) {
    let problem = Problem::<T>::new(view, heads, params, seed);
    let mut backend = cpu::new(problem.shape(1)).unwrap();
    problem.store(&mut *backend, 0);
    for grouping in GROUPINGS {
        for (shares, max_rows) in [(1, 256), (5, 256), (16, 7)] {
            let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
            config.max_rows = max_rows;
            let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
            let context = format!(
                "seed {seed}, {grouping:?}, {shares} shares of {max_rows} rows, {} {heads:?}",
                T::DTYPE
            );
            problem.check(&mut *backend, 0, &plan, &context);
        }
    }
}

#[test]
fn the_default_shares_do_not_follow_the_number_of_threads() {
    let heads = heads(4, 2, 64);
    let problem = Problem::<f32>::new(views::random(5, 24), heads, plain(64), 5);
    let words = [1, 2, 4, 8].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let backend = cpu::new(problem.shape(1)).unwrap();
            let config = backend.plan_config(Grouping::Flatten, 2);
            let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
            plan.words().to_vec()
        })
    });
    assert!(words.iter().all(|other| *other == words[0]));
}

fn plain(dim: u32) -> AttentionParams {
    AttentionParams::new(dim)
}

#[test]
fn random_forests_agree_with_the_definition_in_every_type_and_head_shape() {
    let shapes = [
        heads(4, 1, 64),
        heads(8, 2, 128),
        heads(3, 3, 64),
        heads(6, 2, 64),
        heads(1, 1, 256),
        heads(16, 1, 128),
        heads(5, 1, 64),
        heads(24, 2, 128),
        heads(71, 1, 64),
    ];
    for (seed, heads) in (0..).zip(shapes) {
        check::<bf16>(views::random(seed, 24), heads, plain(heads.head_dim), seed);
        check::<f16>(views::random(seed + 100, 12), heads, plain(heads.head_dim), seed);
        check::<f32>(views::random(seed + 200, 12), heads, plain(heads.head_dim), seed);
    }
}

#[test]
fn heads_between_powers_of_two_agree_with_the_definition_at_every_ratio() {
    let mut seed = 300;
    for head_dim in [80, 96, 112, 192] {
        for (kv_heads, group) in [(3, 1), (2, 5), (1, 7), (2, 12), (1, 71)] {
            let heads = heads(kv_heads * group, kv_heads, head_dim);
            let view = views::random(seed, 12);
            match seed % 3 {
                0 => check::<f32>(view, heads, plain(head_dim), seed),
                1 => check::<bf16>(view, heads, plain(head_dim), seed),
                _ => check::<f16>(view, heads, plain(head_dim), seed),
            }
            seed += 1;
        }
    }
}

#[test]
fn many_random_forests_of_small_heads_agree_with_the_definition() {
    for seed in 1000..1040 {
        let heads = heads(2, 1, 64);
        check::<f32>(views::random(seed, 40), heads, plain(64), seed);
    }
}

#[test]
fn odd_lengths_and_an_empty_leaf_agree_with_the_definition() {
    for tokens in [1, 17, 63, 64, 65, 127, 129] {
        let node = |parent, tokens, query| Node { parent, tokens, query, live: true };
        let nodes = [
            node(None, tokens, false),
            node(Some(0), 0, true),
            node(Some(0), tokens, true),
            node(Some(0), 1, true),
        ];
        check::<bf16>(views::from_nodes(&nodes), heads(4, 2, 64), plain(64), 1);
        check::<f32>(views::from_nodes(&nodes[..2]), heads(4, 2, 64), plain(64), 2);
    }
}

#[test]
fn a_query_that_sees_nothing_gives_zero_and_minus_infinity() {
    let node = |tokens| Node { parent: None, tokens, query: true, live: true };
    let view = views::from_nodes(&[node(0), node(5), node(0)]);
    check::<f16>(view, heads(4, 2, 64), plain(64), 3);
}

#[test]
fn three_hundred_queries_over_one_prefix_agree_with_the_definition() {
    check::<f32>(views::star(70, 300, 3), heads(2, 1, 64), plain(64), 4);
}

#[test]
fn soft_cap_and_scale_are_applied_before_masks_and_softmax() {
    for soft_cap in [Some(0.5), Some(30.0), None] {
        let params = AttentionParams { scale: 0.3, soft_cap };
        for seed in 50..56 {
            check::<f32>(views::random(seed, 12), heads(4, 2, 64), params, seed);
        }
    }
}
