//! The attention kernels' own source, on the emulator, against attention by its definition.

use deft::attention::AttentionParams;
use deft::cache::KvElement;
use deft::plan::{Grouping, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::emulated::Emulated;
use deft_tests::problem::{Heads, Problem};
use deft_tests::views::{self, Node};
use half::{bf16, f16};
use kernels_gpu::Arch;
use kernels_gpu::attention::tile::max_rows;

fn heads(q: u32, kv: u32, dim: u32) -> Heads {
    Heads { q, kv, dim }
}

/// Checks `view` on the emulator, cut into `shares`, by every architecture's kernels.
fn check<T: KvElement>(
    view: TreeView,
    heads: Heads,
    params: AttentionParams,
    (grouping, shares): (Grouping, u32),
    seed: u64,
) {
    let problem = Problem::<T>::new(view, heads, params, seed);
    let mut config = PlanConfig::new(grouping, heads.q / heads.kv, heads.dim, shares);
    config.max_rows = max_rows(heads.dim);
    let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
    for arch in Arch::ALL {
        let mut backend = Emulated::new(problem.shape(1), seed).with_kernels(arch);
        problem.store(&mut backend, 0);
        let context = format!(
            "{}, seed {seed}, {grouping:?}, {shares} shares, {} {heads:?}",
            arch.name(),
            T::DTYPE
        );
        problem.check(&mut backend, 0, &plan, &context);
    }
}

fn plain(dim: u32) -> AttentionParams {
    AttentionParams::new(dim)
}

fn one(tokens: u32) -> TreeView {
    views::from_nodes(&[Node {
        parent: None,
        tokens,
        query: true,
        live: true,
    }])
}

#[test]
fn one_sequence_of_odd_length_agrees_with_the_definition() {
    for tokens in [1, 17, 63, 64, 65, 129] {
        let cut = (Grouping::Flatten, 2);
        check::<bf16>(one(tokens), heads(4, 1, 64), plain(64), cut, tokens.into());
        check::<f16>(
            one(tokens),
            heads(1, 1, 128),
            plain(128),
            cut,
            tokens.into(),
        );
    }
}

#[test]
fn a_prefix_of_many_queries_agrees_with_the_definition_in_every_head_dimension() {
    for (seed, dim) in (0..).zip([64, 128, 256]) {
        for (queries, group) in [(3, 4), (13, 4), (40, 3)] {
            let view = views::star(200, queries, 3);
            let cut = (Grouping::Flatten, 3);
            check::<f16>(view, heads(group, 1, dim), plain(dim), cut, seed);
        }
    }
}

#[test]
fn random_forests_agree_with_the_definition_under_every_grouping() {
    let groupings = [
        Grouping::PerQuery,
        Grouping::Node,
        Grouping::NodeChunk,
        Grouping::Flatten,
    ];
    let shapes = [
        heads(4, 2, 64),
        heads(3, 1, 128),
        heads(2, 2, 256),
        heads(7, 1, 64),
        heads(8, 1, 128),
        heads(1, 1, 256),
        heads(16, 1, 64),
    ];
    for (seed, shape) in (0..).zip(shapes) {
        for grouping in groupings {
            let (cut, params) = ((grouping, 1 + seed as u32 % 4), plain(shape.dim));
            check::<bf16>(views::random(seed, 16), shape, params, cut, seed);
            check::<f16>(views::random(seed + 50, 24), shape, params, cut, seed);
        }
    }
}

#[test]
fn soft_cap_and_scale_are_applied_before_masks_and_softmax() {
    for soft_cap in [Some(2.0), None] {
        let params = AttentionParams {
            scale: 0.3,
            soft_cap,
        };
        let cut = (Grouping::Flatten, 2);
        check::<bf16>(views::random(7, 12), heads(4, 2, 64), params, cut, 7);
    }
}

#[test]
fn schedules_do_not_change_the_result() {
    for seed in 100..110 {
        let cut = (Grouping::Flatten, 2);
        check::<bf16>(
            views::star(150, 20, 5),
            heads(4, 1, 64),
            plain(64),
            cut,
            seed,
        );
    }
}
