//! Plans that follow their sequences from step to step.

use deft::PlanUpdate;
use deft::plan::Grouping;
use deft_tests::foreign::{Layout, Sequences};
use deft_tests::problem::heads;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{check, plan};

#[test]
fn a_plan_follows_sequences_that_grow_shrink_and_change() {
    let shape = heads(4, 2, 64);
    let mut updates = Vec::new();
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sequences = Sequences::random(&mut rng, 9, false);
        let mut plan = plan(&sequences, shape, Grouping::Flatten, false);
        for step in 0..40 {
            let all = 0..sequences.lens.len();
            match rng.random_range(0..20) {
                0 => {
                    let sequence = rng.random_range(all);
                    let len = rng.random_range(0..=sequences.lens[sequence]);
                    sequences.lens[sequence] = len;
                    sequences.tables[sequence].truncate(len.div_ceil(sequences.page_size));
                }
                1 => {
                    let (from, to) = (rng.random_range(all.clone()), rng.random_range(all));
                    sequences.tables[to] = sequences.tables[from].clone();
                    sequences.lens[to] = sequences.lens[from];
                }
                _ => all.for_each(|sequence| {
                    sequences.grow(sequence, sequences.lens[sequence] + rng.random_range(0..7));
                }),
            }
            updates.push(sequences.tables(false, |tables| plan.update(&tables)).unwrap());
            if step % 3 == 0 {
                let context = format!("seed {seed}, step {step}, {:?}", updates.last());
                check::<f32>(&sequences, &plan, shape, Layout::Nhd, &context);
            }
        }
    }
    for update in [PlanUpdate::Unchanged, PlanUpdate::Patched, PlanUpdate::Replanned] {
        let count = updates.iter().filter(|&&found| found == update).count();
        assert!(count >= 10, "{update:?}: {count} of {}", updates.len());
    }
}
