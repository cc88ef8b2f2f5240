//! Flatten gives every share about the same to do, and makes few pieces.

use deft::plan::{Grouping, Plan, PlanConfig, Planner, shares_for};
use deft_tests::coverage::assert_covers;
use deft_tests::views::random;
use deft_tests::workloads;
use deft_workloads::StepWorkload;

fn plan(workload: &StepWorkload, grouping: Grouping) -> (Plan, f64) {
    let built = workload.build(0).unwrap();
    let view = built.forest.view(&built.queries).unwrap();
    let heads = workload.heads;
    let shares = shares_for(132, heads.kv_heads);
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
    config.element_bytes = workload.dtype.bytes() as u32;
    // Pages are not cut: one costs its bytes, or the products of as many rows as an item may have.
    let [dims, bytes, rows] =
        [heads.head_dim, config.element_bytes, config.max_rows].map(f64::from);
    let products_ns = 4.0 * 64.0 * dims * rows / config.cost.flops_per_ns;
    let page_ns = (2.0 * 64.0 * dims * bytes / config.cost.bytes_per_ns).max(products_ns);
    let plan = Planner::new(config).unwrap().plan(&view).unwrap();
    assert_covers(&plan, &view);
    (plan, page_ns)
}

#[test]
fn recorded_shapes_are_cut_within_a_twentieth_or_a_page_of_even() {
    for workload in workloads::steps() {
        let (plan, page_ns) = plan(&workload, Grouping::Flatten);
        let costs = plan.share_ns();
        let mean = costs.iter().sum::<u64>() as f64 / costs.len() as f64;
        let max = *costs.iter().max().unwrap() as f64;
        assert!(
            max <= (1.05 * mean).max(mean + page_ns),
            "{}: {max} against {mean}\n{plan}",
            workload.name
        );
    }
}

#[test]
fn random_forests_of_many_pages_are_cut_evenly() {
    let (mut plans, mut uneven) = (0, 0);
    for seed in 0..400 {
        let view = random(seed, 300);
        for shares in [2, 16, 66] {
            if view.pages.len() < 16 * shares as usize {
                continue;
            }
            let mut config = PlanConfig::new(Grouping::Flatten, 4, 128, shares);
            // Row tiles that have to keep in step leave shares uneven; here the cache keeps every page.
            config.cost.cache_bytes = 1e12;
            // Evening out further takes a cut, and a cut in an item costs its queries' partial slots: here at
            // most 32 queries of 4 rows, o and LSE, written and read.
            let cut_ns = 2.0 * 128.0 * 129.0 * 4.0 / config.cost.partial_bytes_per_ns;
            let merge_ns = config.cost.merge_ns;
            let plan = Planner::new(config).unwrap().plan(&view).unwrap();
            // The first cut takes a merge besides.
            let cut_ns = if plan.partial_slots() == 0 { cut_ns + merge_ns } else { cut_ns };
            let costs = plan.share_ns();
            let mean = costs.iter().sum::<u64>() as f64 / costs.len() as f64;
            let max = *costs.iter().max().unwrap() as f64;
            assert!(max < 1.05 * mean + cut_ns, "seed {seed}: {max} against {mean}\n{plan}");
            let even =
                plan.imbalance() < 1.15 || (plan.partial_slots() == 0 && max < mean + cut_ns);
            assert!(even, "seed {seed}\n{plan}");
            plans += 1;
            uneven += u32::from(max > 1.05 * mean);
        }
    }
    assert!(plans > 500 && uneven * 10 < plans, "{uneven} of {plans}");
}
