//! Foreign caches in place on a GPU, against attention of each sequence for itself in f64. Without a GPU it says so and
//! passes. `DEFT_FORESTS=500` is the long run.

use std::collections::BTreeMap;

use deft::PlanUpdate;
use deft::cache::{DType, KvElement};
use deft::cuda::InPlace;
use deft::plan::{Grouping, HeadShape, PagedPlan};
use deft_tests::foreign::{Foreign, LAYOUTS, Layout, Queries, Sequences};
use deft_tests::forests::pick;
use deft_tests::gpu::{Gpu, Tally, setting, wanted};
use deft_tests::problem::{GROUPINGS, heads};
use half::{bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn open(gpu: &Gpu, heads: HeadShape, dtype: DType) -> InPlace {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    InPlace::new(&gpu.device, [q_heads, kv_heads, head_dim], dtype).unwrap()
}

fn run<T: KvElement>(
    gpu: &Gpu,
    (sequences, queries): (&Sequences, Queries),
    shape: HeadShape,
    rng: &mut SmallRng,
    tallies: &mut BTreeMap<String, Tally>,
) {
    let mut in_place = open(gpu, shape, T::DTYPE);
    let layout = pick(rng, &LAYOUTS);
    let mut foreign = Foreign::<T>::new(sequences, shape, layout, 1);
    if rng.random_ratio(1, 3) {
        foreign.spoil(sequences, rng);
    }
    for grouping in GROUPINGS {
        let mut config = in_place.plan_config(grouping);
        config.shares = rng.random_range(1..=40);
        let make = |tables: deft::plan::BlockTables<'_>| PagedPlan::new(config, &tables);
        let plan = sequences.tables(queries == Queries::Drafts, make).unwrap();
        let what = format!(
            "{}, {queries:?}, {layout:?}, blocks of {}, {grouping:?}, {} {shape:?}",
            gpu.arch(),
            sequences.page_size,
            T::DTYPE
        );
        gpu.watchdog.now(&what);
        let (verdict, _) = foreign.judge(sequences, |call| {
            gpu.attend_in_place::<T>(&mut in_place, &plan, call).unwrap();
        });
        let name = format!("{} {}_d{} {layout:?}", gpu.arch(), T::DTYPE, shape.head_dim);
        tallies.entry(name).or_default().add(&verdict, &what);
    }
}

#[test]
fn random_sequences_in_every_layout_agree_with_f64() {
    for gpu in Gpu::each() {
        let mut tallies = BTreeMap::new();
        for case in 0..setting("DEFT_FORESTS", 60) {
            let seed = setting("DEFT_SEED", 1).wrapping_mul(1_000_003) + case;
            let mut rng = SmallRng::seed_from_u64(seed);
            let queries = pick(&mut rng, &[Queries::One, Queries::Causal, Queries::Drafts]);
            let sequences = Sequences::with(&mut rng, 30, queries);
            let (kv, group) = pick(&mut rng, &[(1, 1), (2, 4), (1, 7), (4, 2), (1, 16)]);
            let (dtype, dim) =
                (pick(&mut rng, &[DType::Bf16, DType::F16]), pick(&mut rng, &[64, 128]));
            if sequences.queries() == 0 || !wanted(&format!("{dtype}_d{dim}")) {
                continue;
            }
            let (all, shape) = ((&sequences, queries), heads(kv * group, kv, dim));
            match dtype {
                DType::F16 => run::<f16>(&gpu, all, shape, &mut rng, &mut tallies),
                _ => run::<bf16>(&gpu, all, shape, &mut rng, &mut tallies),
            }
        }
        let wrong: u32 = tallies.iter().map(|(name, tally)| tally.wrong(name)).sum();
        assert_eq!(wrong, 0, "cases are wrong with the kernels for {}", gpu.arch());
    }
}

#[test]
fn a_plan_on_the_device_follows_sequences_that_grow() {
    for gpu in Gpu::each() {
        let shape = heads(8, 2, 128);
        let mut in_place = open(&gpu, shape, DType::Bf16);
        let config = in_place.plan_config(Grouping::Flatten);
        let mut rng = SmallRng::seed_from_u64(4);
        let mut sequences = Sequences::with(&mut rng, 20, Queries::One);
        let mut plan = sequences.tables(false, |tables| PagedPlan::new(config, &tables)).unwrap();
        let mut updates = Vec::new();
        for step in 0..60 {
            for sequence in 0..sequences.lens.len() {
                sequences.grow(sequence, sequences.lens[sequence] + rng.random_range(0..7));
            }
            updates.push(sequences.tables(false, |tables| plan.update(&tables)).unwrap());
            in_place.update(&plan, &gpu.stream).unwrap();
            if step % 6 == 0 {
                let foreign = Foreign::<bf16>::new(&sequences, shape, Layout::Nhd, step);
                foreign.check(&sequences, &format!("step {step}"), |call| {
                    gpu.attend_in_place::<bf16>(&mut in_place, &plan, call).unwrap();
                });
            }
        }
        assert!(updates.contains(&PlanUpdate::Patched), "{updates:?}");
    }
}
