//! The attention kernels on a GPU: random forests with every grouping against f64, and against themselves.
//!
//! Without a GPU it says so and passes. `DEFT_FORESTS=500` is the long run; `deft_tests::gpu` has the other settings.

use std::collections::BTreeMap;

use deft::attention::Backend;
use deft::cache::{DType, HEAD_DIMS, KvElement};
use deft::cuda::CudaBackend;
use deft::plan::Planner;
use deft::tree::TreeView;
use deft_tests::forests::{self, pick};
use deft_tests::gpu::{Gpu, Tally, random_layer, setting, wanted};
use deft_tests::problem::{GROUPINGS, Problem};
use deft_tests::views;
use half::{bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Queries of a forest that are compared.
const CHECKED: u32 = 40;

type Tallies = BTreeMap<String, Tally>;

/// A seed names a case: the same forest comes again with the same `DEFT_SEED` and at least as many `DEFT_FORESTS`.
#[test]
fn random_forests_agree_with_f64_under_every_grouping_and_every_run_gives_the_same_bits() {
    for gpu in Gpu::each() {
        let mut tallies = Tallies::new();
        for case in 0..setting("DEFT_FORESTS", 60) {
            let seed = setting("DEFT_SEED", 1).wrapping_mul(1_000_003) + case;
            run_case(&gpu, case, seed, forests::random(seed), &mut tallies);
            // Masks of any bits besides those of drafts.
            if case % 4 == 3 {
                run_case(&gpu, case, seed, views::random(seed, 60), &mut tallies);
            }
        }
        let wrong: u32 = tallies.iter().map(|(name, tally)| tally.wrong(name)).sum();
        assert_eq!(wrong, 0, "cases are wrong with the kernels for {}", gpu.arch());
    }
}

fn run_case(gpu: &Gpu, case: u64, seed: u64, view: TreeView, tallies: &mut Tallies) {
    let mut rng = SmallRng::seed_from_u64(!seed);
    let dtype = pick(&mut rng, &[DType::Bf16, DType::F16]);
    let head_dim = pick(&mut rng, &HEAD_DIMS);
    if !wanted(&format!("{dtype}_d{head_dim}")) {
        return;
    }
    let run = match dtype {
        DType::F16 => attend::<f16>,
        _ => attend::<bf16>,
    };
    run(gpu, case, view, head_dim, &mut rng, tallies);
}

fn attend<T: KvElement>(
    gpu: &Gpu,
    case: u64,
    view: TreeView,
    head_dim: u32,
    rng: &mut SmallRng,
    tallies: &mut Tallies,
) {
    let (heads, params) = random_layer(rng, head_dim);
    let problem = Problem::<T>::sampled(view, heads, params, case, CHECKED);
    let mut backend = CudaBackend::new(&gpu.device, problem.shape(1)).unwrap();
    gpu.watchdog.now("appending a forest");
    problem.store(&mut backend, 0);
    for grouping in GROUPINGS {
        let mut config = backend.plan_config(grouping, heads.group_size());
        config.shares = rng.random_range(1..=40);
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let what = format!(
            "forest {case}, {}, {grouping:?}, {} {heads:?} {params:?}, {} shares, {} queries, {} partial slots",
            gpu.arch(),
            T::DTYPE,
            plan.shares(),
            plan.queries(),
            plan.partial_slots()
        );
        gpu.watchdog.now(&what);
        let first = problem.attend(&mut backend, 0, &plan);
        let name = format!("{} {}_d{head_dim} {grouping:?}", gpu.arch(), T::DTYPE);
        let tally = tallies.entry(name).or_default();
        tally.add(&problem.judge(&first), &what);
        if !case.is_multiple_of(25) {
            continue;
        }
        for run in 1..setting("DEFT_RUNS", 20) {
            let again = problem.attend(&mut backend, 0, &plan);
            assert!(again.same_bits(&first), "{what}: run {run} gave other bits than the first");
        }
        let mut without_lse = problem.attend_without_lse(&mut backend, 0, &plan);
        without_lse.lse.clone_from(&first.lse);
        assert!(without_lse.same_bits(&first), "{what}: other bits without LSE");
    }
}
