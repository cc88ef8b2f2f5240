//! Hundreds of random requests on the CPU's model: no page is lost, and what is left is right. `gpu model::soak` of the
//! tests does thousands on a GPU.

mod common;

use common::soak::Soak;
use common::{assert_rows, definition, tiny};
use deft_engine::{CpuModel, CpuOptions, TreeModel, Weights};

/// Pages of the cache: so few that they run out now and then.
const PAGES: u64 = 12;
/// Bytes of a page: K and V of 64 tokens, 2 layers, 2 KV heads of 64 in f32.
const PAGE_BYTES: u64 = 2 * 64 * 2 * 2 * 64 * 4;
const STEPS: usize = 320;

#[test]
fn random_trees_leak_no_page_and_agree_with_f64() {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let reference = definition(&weights);
    for seed in 1..=2 {
        let options = CpuOptions { capacity_bytes: PAGES * PAGE_BYTES, ..CpuOptions::default() };
        let mut soak = Soak::new(CpuModel::load(&weights, options, |_, _| {}).unwrap(), seed);
        if seed == 1 {
            soak.every_size();
        }
        for step in 0..STEPS {
            soak.turn();
            if step % 80 == 79 {
                soak.answers(|path, logits| {
                    assert_rows(logits, [&reference.logits(path).pop().unwrap()]);
                });
            }
        }
        let happened = soak.happened;
        let often = happened.accepted > 50 && happened.refused > 5 && happened.cancelled > 3;
        assert!(often, "{happened:?}");
        soak.clear();
        assert_eq!(u64::from(soak.model.forest().pool().free()), PAGES);
    }
}
