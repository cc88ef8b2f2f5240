//! Planning 257 nodes with 256 queries: a view, a plan from scratch, and a patch of all leaves.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use deft::cache::PagePool;
use deft::plan::{Grouping, Plan, PlanConfig, Planner};
use deft::tree::{NodeKey, TokenForest, TreeView, ViewScratch};

fn star() -> (TokenForest, Vec<NodeKey>) {
    let mut forest = TokenForest::new(PagePool::new(4096).expect("pages"));
    let root = forest.insert_root(4000).expect("room");
    let leaves = forest.fork(root, 256).expect("room");
    forest.extend(&leaves, 192).expect("room");
    (forest, leaves)
}

fn scratch(c: &mut Criterion) {
    let (forest, leaves) = star();
    let (mut view, mut buffers) = (TreeView::default(), ViewScratch::default());
    c.bench_function("view", |b| {
        b.iter(|| forest.view_into(black_box(&leaves), &mut buffers, &mut view));
    });
    for grouping in [
        Grouping::Flatten,
        Grouping::Node,
        Grouping::NodeChunk,
        Grouping::PerQuery,
    ] {
        let mut planner = Planner::new(PlanConfig::new(grouping, 4, 128, 16)).expect("in range");
        let mut plan = Plan::empty();
        c.bench_function(&format!("plan/{grouping:?}"), |b| {
            b.iter(|| planner.plan_into(black_box(&view), &mut plan));
        });
    }
}

fn patch(c: &mut Criterion) {
    let (mut forest, leaves) = star();
    let view = forest.view(&leaves).expect("leaves");
    let config = PlanConfig::new(Grouping::Flatten, 4, 128, 16);
    let plan = Planner::new(config)
        .expect("in range")
        .plan(&view)
        .expect("a plan");
    let cursor = forest.growth_cursor();
    forest.extend(&leaves, 1).expect("room");
    let growth = forest.growth_since(cursor).expect("the same shape");
    let mut dirty = Vec::new();
    c.bench_function("patch", |b| {
        b.iter_batched_ref(
            || plan.clone(),
            |plan| plan.patch(black_box(growth), &mut dirty),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, scratch, patch);
criterion_main!(benches);
