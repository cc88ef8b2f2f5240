//! Planning steps to count instructions of, one named function each:
//!
//! ```text
//! cargo build --release --example plan_instructions
//! for step in view_step scratch_step patch_step; do
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect="*${step}*" \
//!         target/release/examples/plan_instructions
//! done
//! ```
//!
//! "Collected" is then the instructions of [`TIMES`] calls.

use deft::cache::PagePool;
use deft::plan::{Grouping, Patch, Plan, PlanConfig, Planner};
use deft::tree::{Growth, NodeKey, TokenForest, TreeView, ViewScratch};

/// Calls of each step, after one that fills the buffers.
const TIMES: usize = 100;

#[inline(never)]
fn view_step(
    forest: &TokenForest,
    leaves: &[NodeKey],
    scratch: &mut ViewScratch,
    view: &mut TreeView,
) {
    forest.view_into(leaves, scratch, view).expect("leaves");
}

#[inline(never)]
fn scratch_step(planner: &mut Planner, view: &TreeView, plan: &mut Plan) {
    planner.plan_into(view, plan).expect("a view");
}

#[inline(never)]
fn patch_step(plan: &mut Plan, growth: &[Growth], dirty: &mut Vec<std::ops::Range<u32>>) {
    assert_eq!(plan.patch(growth, dirty), Patch::Patched);
}

fn main() {
    let mut forest = TokenForest::new(PagePool::new(4096).expect("pages"));
    let root = forest.insert_root(4000).expect("room");
    let leaves = forest.fork(root, 256).expect("room");
    forest.extend(&leaves, 192).expect("room");
    let (mut view, mut buffers) = (TreeView::default(), ViewScratch::default());
    forest.view_into(&leaves, &mut buffers, &mut view).expect("leaves");
    let config = PlanConfig::new(Grouping::Flatten, 4, 128, 16);
    let mut planner = Planner::new(config).expect("in range");
    let mut plan = planner.plan(&view).expect("a view");
    for _ in 0..TIMES {
        view_step(&forest, &leaves, &mut buffers, &mut view);
        scratch_step(&mut planner, &view, &mut plan);
    }
    let cursor = forest.growth_cursor();
    forest.extend(&leaves, 1).expect("room");
    let growth = forest.growth_since(cursor).expect("the same shape");
    let mut dirty = Vec::with_capacity(growth.len());
    for _ in 0..TIMES {
        let mut grown = plan.clone();
        patch_step(&mut grown, growth, &mut dirty);
    }
    println!("{plan}");
}
