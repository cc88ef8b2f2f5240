//! What a plan makes its queries see, compared with what they should.

use std::collections::{BTreeMap, HashMap};

use deft::plan::{Item, Plan};
use deft::tree::TreeView;
use kernels_gpu::abi::{NONE, PAGE_TOKENS};

/// Of each query, by page, the tokens it sees as bits.
pub type Coverage = Vec<BTreeMap<u32, u64>>;

/// What each query of `view` is to see.
pub fn of_view(view: &TreeView) -> Coverage {
    let mut seen = vec![BTreeMap::new(); view.queries as usize];
    for run in &view.runs {
        let pages = &view.pages[run.pages.start as usize..run.pages.end as usize];
        let width = run.queries.end - run.queries.start;
        for (i, &page) in (0..).zip(pages) {
            for query in run.queries.clone() {
                let mut bits = low_bits((run.tokens - i * PAGE_TOKENS).min(PAGE_TOKENS));
                if let Some(tokens) = run.causal_tokens(&(query..query + 1)) {
                    bits &= low_bits(tokens.min(PAGE_TOKENS));
                }
                if let Some(mask) = run.mask {
                    bits &= view.masks[(mask + i * width + query - run.queries.start) as usize];
                }
                if bits != 0 {
                    seen[query as usize].insert(page, bits);
                }
            }
        }
    }
    seen
}

/// What each query of `plan` sees when runs are as long as `lengths` says, by length counter.
///
/// # Panics
/// If a query sees a token twice.
pub fn of_plan(plan: &Plan, lengths: &HashMap<u32, u32>) -> Coverage {
    let mut seen = vec![BTreeMap::new(); plan.queries() as usize];
    for item in items(plan) {
        for segment in item.segments {
            let length = lengths.get(&segment.length_slot).copied().unwrap_or(0);
            let tokens = segment.tokens_at(length);
            let pages = item.pages(segment);
            assert_eq!(segment.first_token % PAGE_TOKENS, 0);
            assert!(tokens <= segment.page_count * PAGE_TOKENS);
            assert!(segment.page_count <= segment.page_capacity);
            assert!(segment.visible_end() <= item.record.query_count);
            for (i, &page) in (0..tokens.div_ceil(PAGE_TOKENS)).zip(pages) {
                for q in 0..item.record.query_count {
                    let mut bits = low_bits((tokens - i * PAGE_TOKENS).min(PAGE_TOKENS));
                    let visible = (segment.visible_begin()..segment.visible_end()).contains(&q);
                    if segment.mask != NONE {
                        let at = segment.mask + i * item.record.query_count + q;
                        let mask = plan.masks()[at as usize];
                        assert_eq!(mask & !bits, 0, "a mask shows tokens that do not exist");
                        assert!(visible || mask == 0, "a mask shows more than is visible");
                        bits = mask;
                    }
                    if visible && bits != 0 {
                        let query = (item.record.query_begin + q) as usize;
                        let before = seen[query].insert(page, bits);
                        assert_eq!(before, None, "query {query} sees page {page} twice");
                    }
                }
            }
        }
    }
    seen
}

/// All items of a plan, share by share.
pub fn items(plan: &Plan) -> impl Iterator<Item = Item<'_>> {
    (0..plan.shares()).flat_map(|share| plan.share(share).items())
}

/// Lengths of the live runs of `view`, by length counter.
pub fn lengths(view: &TreeView) -> HashMap<u32, u32> {
    let live = view.runs.iter();
    live.filter_map(|run| Some((run.length_slot?, run.tokens))).collect()
}

/// Asserts that `plan` makes every query see exactly what `view` says, each token once, and that every
/// query's result is written exactly once: by an item alone, or merged from all its partial slots.
///
/// # Panics
/// If it does not.
pub fn assert_covers(plan: &Plan, view: &TreeView) {
    assert_eq!(plan.queries(), view.queries);
    assert_eq!(of_plan(plan, &lengths(view)), of_view(view));
    assert_rows(plan, view);
    assert_merges(plan);
}

/// Asserts that items and merges read and write each query's own row.
fn assert_rows(plan: &Plan, view: &TreeView) {
    for item in items(plan) {
        let begin = item.record.query_begin as usize;
        let rows = &view.query_order[begin..begin + item.record.query_count as usize];
        assert!(item.rows().eq(rows.iter().copied()));
    }
    for row in plan.merge_rows() {
        assert_eq!(row.row, view.query_order[row.query as usize]);
    }
}

fn assert_merges(plan: &Plan) {
    let mut slots_of = vec![Vec::new(); plan.queries() as usize];
    let mut writers = vec![0; plan.queries() as usize];
    let mut used = vec![false; plan.partial_slots() as usize];
    for item in items(plan) {
        let record = item.record;
        for q in 0..record.query_count {
            let query = (record.query_begin + q) as usize;
            if record.partial_slot == NONE {
                writers[query] += 1;
            } else {
                let slot = record.partial_slot + q;
                assert!(!std::mem::replace(&mut used[slot as usize], true));
                slots_of[query].push(slot);
            }
        }
    }
    assert!(used.iter().all(|&used| used), "a slot is never written");
    let mut listed = 0;
    let mut previous = None;
    for row in plan.merge_rows() {
        assert!(previous < Some(row.query), "merge rows are in order");
        previous = Some(row.query);
        assert_eq!(row.slot_begin, listed);
        listed += row.slot_count;
        let slots = &plan.merge_slots()[row.slot_begin as usize..listed as usize];
        let mut expected = std::mem::take(&mut slots_of[row.query as usize]);
        expected.sort_unstable();
        assert_eq!(slots, expected, "query {}", row.query);
        writers[row.query as usize] += 1;
    }
    assert_eq!(listed as usize, plan.merge_slots().len());
    assert!(slots_of.iter().all(Vec::is_empty), "a slot is never merged");
    assert!(writers.iter().all(|&n| n == 1), "every query has one writer");
}

fn low_bits(count: u32) -> u64 {
    if count == 0 { 0 } else { u64::MAX >> (64 - count) }
}
