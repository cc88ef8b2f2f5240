//! Attention over foreign caches in place, planned from block tables, against attention of each sequence for itself.

mod growth;
mod kernels;
mod refusals;

use deft::attention::cpu::InPlace;
use deft::cache::KvElement;
use deft::plan::{BlockTables, Grouping, HeadShape, PagedPlan};
use deft_tests::foreign::{Foreign, LAYOUTS, Layout, Sequences};
use deft_tests::problem::{GROUPINGS, heads};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Compares all rows with attention of each sequence for itself.
fn check<T: KvElement>(
    sequences: &Sequences,
    plan: &PagedPlan,
    heads: HeadShape,
    layout: Layout,
    context: &str,
) {
    let foreign = Foreign::<T>::new(sequences, heads, layout, 7);
    foreign.check(sequences, context, |call| InPlace::default().attend(plan, call).unwrap());
}

fn plan(sequences: &Sequences, heads: HeadShape, grouping: Grouping, masks: bool) -> PagedPlan {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    let config = InPlace::plan_config(grouping, [q_heads, kv_heads, head_dim], bf16::DTYPE);
    sequences.tables(masks, |tables| PagedPlan::new(config, &tables)).unwrap()
}

/// Random sequences in every layout, type and grouping.
fn check_random(seeds: std::ops::Range<u64>, drafts: bool, masks: bool) {
    for seed in seeds {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sequences = Sequences::random(&mut rng, 20, drafts);
        if !masks {
            sequences = sequences.causal();
        }
        if sequences.queries() == 0 {
            continue;
        }
        let heads = [heads(4, 2, 64), heads(3, 3, 80), heads(8, 1, 128)][seed as usize % 3];
        let layout = [&LAYOUTS[..], &[Layout::Unaligned]].concat()[seed as usize % 6];
        let grouping = GROUPINGS[seed as usize / 4 % GROUPINGS.len()];
        let plan = plan(&sequences, heads, grouping, masks);
        let context = format!("seed {seed}, {grouping:?}, {layout:?}, {heads:?}");
        match seed % 5 {
            0 => check::<f16>(&sequences, &plan, heads, layout, &context),
            1 => check::<f32>(&sequences, &plan, heads, layout, &context),
            _ => check::<bf16>(&sequences, &plan, heads, layout, &context),
        }
    }
}

#[test]
fn sequences_that_begin_alike_get_what_each_for_itself_gets() {
    check_random(0..60, false, false);
}

#[test]
fn new_tokens_of_a_sequence_see_it_up_to_themselves() {
    check_random(100..140, true, false);
}

#[test]
fn draft_trees_see_what_their_masks_say() {
    check_random(200..260, true, true);
}

#[test]
fn what_is_shared_is_read_once() {
    let row = |ids: &[i32]| [ids, &vec![-1; 8 - ids.len()]].concat();
    // A prompt of three blocks; one branch has its fourth as well, which is another's last; one stands alone.
    let ids = [row(&[5, 2, 9, 4, 1]), row(&[5, 2, 9, 4]), row(&[5, 2, 9, 3]), row(&[7])].concat();
    let (lens, stride, page_size) = ([66, 60, 49, 16], 8, 16);
    let tables =
        BlockTables { ids: &ids, stride, lens: &lens, page_size, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], bf16::DTYPE);
    let plan = PagedPlan::new(config, &tables).unwrap();
    assert_eq!(plan.tokens(), [66 + 60 + 49 + 16, 48 + 18 + 12 + 1 + 16]);
    assert_eq!(plan.blocks(), 10);
    let runs = plan.view().runs.iter().map(|run| (run.parent, run.tokens, run.queries.clone()));
    let expected = [
        (None, 48, 0..3),
        (Some(0), 18, 0..1),
        (Some(0), 12, 1..2),
        (Some(0), 1, 2..3),
        (None, 16, 3..4),
    ];
    assert_eq!(runs.collect::<Vec<_>>(), expected);
}
