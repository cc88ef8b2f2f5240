//! The GPU kernel's own source, on the emulator.

use deft::cache::{DType, KvElement};
use deft::plan::{Grouping, HeadShape, PagedPlan, PlanConfig};
use deft_tests::emulated::{attend_in_place, dtype_of_variants};
use deft_tests::foreign::{Foreign, LAYOUTS, Layout, Queries, Sequences};
use deft_tests::forests::pick;
use deft_tests::problem::{GROUPINGS, heads};
use half::{bf16, f16};
use kernels_gpu::Arch;
use kernels_gpu::attention::tile::max_rows;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rayon::prelude::*;

fn plan(
    sequences: &Sequences,
    heads: HeadShape,
    (grouping, shares): (Grouping, u32),
    masks: bool,
) -> PagedPlan {
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
    config.max_rows = max_rows(heads.head_dim);
    sequences.tables(masks, |tables| PagedPlan::new(config, &tables)).unwrap()
}

/// With NaN and infinity among what is seen where `spoil` says so.
fn check(
    sequences: &Sequences,
    plan: &PagedPlan,
    heads: HeadShape,
    layout: Layout,
    spoil: Option<&mut SmallRng>,
    context: &str,
) {
    match dtype_of_variants(heads.head_dim) {
        DType::Bf16 => check_of::<bf16>(sequences, plan, heads, layout, spoil, context),
        _ => check_of::<f16>(sequences, plan, heads, layout, spoil, context),
    }
}

fn check_of<T: KvElement>(
    sequences: &Sequences,
    plan: &PagedPlan,
    heads: HeadShape,
    layout: Layout,
    spoil: Option<&mut SmallRng>,
    context: &str,
) {
    let mut foreign = Foreign::<T>::new(sequences, heads, layout, 5);
    if let Some(rng) = spoil {
        foreign.spoil(sequences, rng);
    }
    let context = format!("{context}, {layout:?}, {} {heads:?}", T::DTYPE);
    for arch in Arch::ALL {
        // Smaller blocks have no boxes of eight tokens.
        if arch == Arch::Sm90a && sequences.page_size < 8 {
            continue;
        }
        let context = format!("{context}, {}", arch.name());
        foreign.check(sequences, &context, |call| {
            attend_in_place(arch, 3, plan, call)
                .unwrap_or_else(|report| panic!("{context}: {report}"));
        });
    }
}

/// Random sequences, every case of another seed.
fn check_random(seeds: std::ops::Range<u64>, queries: Queries, spoil: bool) {
    seeds.into_par_iter().for_each(|seed| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let sequences = Sequences::with(&mut rng, 12, queries);
        if sequences.queries() == 0 {
            return;
        }
        let shapes = [heads(4, 2, 64), heads(3, 1, 128), heads(16, 1, 64), heads(8, 1, 128)];
        let shape = shapes[seed as usize % 4];
        let grouping = GROUPINGS[seed as usize / 4 % GROUPINGS.len()];
        let cut = (grouping, 1 + seed as u32 % 4);
        let plan = plan(&sequences, shape, cut, queries == Queries::Drafts);
        let layout = pick(&mut rng, &LAYOUTS);
        let context =
            format!("seed {seed}, {queries:?}, blocks of {}, {cut:?}", sequences.page_size);
        let spoil = spoil.then_some(&mut rng);
        check(&sequences, &plan, shape, layout, spoil, &context);
    });
}

#[test]
fn kernels_read_every_layout_and_block_size_where_it_is() {
    let sizes = [1, 8, 16, 32, 64];
    let cases = LAYOUTS.into_iter().flat_map(|layout| sizes.map(|size| (layout, size)));
    let cases: Vec<(Layout, usize)> = cases.collect();
    cases.into_par_iter().for_each(|(layout, page_size)| {
        // A prompt of 140 tokens, two branches of odd lengths, one of them as long as the prompt, and a sequence alone.
        let mut sequences = Sequences { page_size, ..Sequences::default() };
        for (from, length) in [(0, 177), (0, 150), (0, 140), (1, 65)] {
            let at = sequences.tables.len();
            let shared = if from == 0 && at > 0 { 139 / page_size } else { 0 };
            let table =
                sequences.tables.first().map_or(Vec::new(), |first| first[..shared].to_vec());
            sequences.tables.push(table);
            sequences.lens.push(0);
            sequences.seen.push(vec![vec![0]]);
            sequences.grow(at, length);
        }
        let shape = heads(4, 2, 64);
        let plan = plan(&sequences, shape, (Grouping::Flatten, 2), false);
        let context = format!("blocks of {page_size}");
        check(&sequences, &plan, shape, layout, None, &context);
    });
}

#[test]
fn kernels_give_random_sequences_what_each_for_itself_gets() {
    check_random(300..332, Queries::One, false);
}

#[test]
fn kernels_let_new_tokens_see_their_sequence_up_to_themselves() {
    check_random(400..412, Queries::Causal, false);
}

#[test]
fn kernels_let_drafts_see_what_their_masks_say() {
    check_random(500..516, Queries::Drafts, false);
}

/// Others' tokens are in the same page, work item and product.
#[test]
fn a_nan_or_an_infinity_reaches_those_who_see_it_and_nobody_else() {
    check_random(600..624, Queries::One, true);
    check_random(700..724, Queries::Drafts, true);
}
