//! NaN and infinity in the cache: rows that see such a token are spoilt, and no other row is, be it in the same page, the
//! same work item or the same vector.

use deft::attention::{
    AttentionParams, Backend, Counters, PagedTokens, RotaryTable, Rotation, cpu,
};
use deft::cache::{KvElement, PagePool, PagedOrder, PagedTable};
use deft::plan::HeadShape;
use deft::plan::{Grouping, Plan, PlanConfig, Planner};
use deft::tree::{DraftNode, TokenForest, TreeView, ViewScratch};
use deft_tests::emulated::Emulated;
use deft_tests::problem::{Problem, heads};
use deft_tests::reference::attention::visible_tokens;
use deft_tests::views::{self, Node};
use device::Arch;
use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::attention::tile::max_rows;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];
const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// A root, three leaves, a draft whose nodes share a page, and a causal chunk of one leaf's tokens.
fn world(root: u32, chunk: u32) -> TreeView {
    let mut forest = TokenForest::new(PagePool::new(64).unwrap());
    let root = forest.insert_root(root).unwrap();
    let leaves = forest.fork(root, 3).unwrap();
    forest.extend(&leaves[..1], 1).unwrap();
    forest.extend(&leaves[1..], chunk + 5).unwrap();
    let draft = [None, Some(0), Some(0), Some(2)];
    let draft = draft.map(|parent| DraftNode { parent, tokens: 3 });
    let drafted = forest.insert_draft(leaves[0], &draft).unwrap();
    let mut batch = vec![(leaves[0], 1), (leaves[1], 1), (leaves[2], chunk)];
    batch.extend(drafted.iter().map(|&node| (node, 1)));
    let mut view = TreeView::default();
    forest.view_tokens_into(&batch, &mut ViewScratch::default(), &mut view).unwrap();
    view
}

fn leaves(root: u32, count: usize) -> TreeView {
    let leaf = |parent, tokens, query| Node { parent, tokens, query, live: false };
    let mut nodes = vec![leaf(None, root, false)];
    nodes.extend((0..count).map(|_| leaf(Some(0), 1, true)));
    views::from_nodes(&nodes)
}

/// Of each place the number of queries that see it, of those that some run has.
fn seers(view: &TreeView) -> Vec<(u32, u32)> {
    let mut places = std::collections::BTreeMap::new();
    for run in &view.runs {
        for token in 0..run.tokens {
            let page = view.pages[(run.pages.start + token / PAGE_TOKENS) as usize];
            places.insert(page * PAGE_TOKENS + token % PAGE_TOKENS, 0);
        }
    }
    for query in 0..view.queries {
        for (page, token) in visible_tokens(view, query) {
            *places.get_mut(&(page * PAGE_TOKENS + token)).unwrap() += 1;
        }
    }
    places.into_iter().collect()
}

/// Puts `bad` into one element of K or V of the token at `place`, in one KV head.
fn plant<T: KvElement>(problem: &mut Problem<T>, value: bool, place: u32, at: [u32; 2], bad: f32) {
    let HeadShape { kv_heads: kv, head_dim: dim, .. } = problem.inputs.heads;
    let element = ((place * kv + at[0] % kv) * dim + at[1] % dim) as usize;
    let cache = if value { &mut problem.inputs.v } else { &mut problem.inputs.k };
    cache[element] = T::from_f32(bad);
}

fn plan(view: &TreeView, heads: HeadShape, grouping: Grouping, shares: u32) -> Plan {
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
    config.max_rows = max_rows(heads.head_dim);
    Planner::new(config).unwrap().plan(view).unwrap()
}

/// Plants a few bad elements, most where some queries look and others do not, and checks.
fn check<T: KvElement>(
    view: TreeView,
    heads: HeadShape,
    params: AttentionParams,
    seed: u64,
    run: impl Fn(&Problem<T>, &str),
) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut problem = Problem::<T>::new(view, heads, params, seed);
    let all = seers(&problem.view);
    let mut places: Vec<u32> = Vec::new();
    let some = |&&(_, seers): &&(u32, u32)| seers < problem.view.queries;
    let partly: Vec<u32> = all.iter().filter(some).map(|&(place, _)| place).collect();
    for _ in 0..rng.random_range(1..4) {
        places.push(partly[rng.random_range(0..partly.len())]);
    }
    if seed % 4 == 3 {
        places.push(all[rng.random_range(0..all.len())].0);
    }
    for place in places {
        let at = [rng.random(), rng.random()];
        let value = rng.random_range(0..3) > 0;
        plant(&mut problem, value, place, at, BAD[rng.random_range(0..3)]);
    }
    problem.recompute();
    run(&problem, &format!("seed {seed}, {} {heads:?}", T::DTYPE));
}

fn on_cpu<T: KvElement>(problem: &Problem<T>, context: &str) {
    let mut backend = cpu::new(problem.shape(1)).unwrap();
    problem.store(&mut *backend, 0);
    for (grouping, shares) in GROUPINGS.into_iter().zip([1, 5, 3, 2]) {
        let plan = plan(&problem.view, problem.inputs.heads, grouping, shares);
        problem.check(&mut *backend, 0, &plan, &format!("{context}, {grouping:?}"));
    }
}

/// Both architectures, and all three ways into the cache.
fn on_kernels<T: KvElement>(problem: &Problem<T>, context: &str) {
    let writes: [fn(&Problem<T>, &mut dyn Backend); 3] =
        [|problem, to| problem.store(to, 0), store_rotated, store_imported];
    let infinite = |k: &T| k.to_f32().is_infinite();
    for (way, write) in writes.into_iter().enumerate() {
        // Infinity does not outlive a rotation, not even by nothing.
        if way == 1 && problem.inputs.k.iter().any(infinite) {
            continue;
        }
        let arch = Arch::ALL[way % 2];
        let mut backend = Emulated::new(problem.shape(1), 1).with_kernels(arch);
        write(problem, &mut backend);
        let plan = plan(&problem.view, problem.inputs.heads, Grouping::Flatten, [1, 3, 1][way]);
        let context = format!("{context}, {}, written in way {way}", arch.name());
        problem.check(&mut backend, 0, &plan, &context);
    }
}

fn places<T: KvElement>(problem: &Problem<T>) -> Vec<u32> {
    (0..problem.shape(1).pages * PAGE_TOKENS).collect()
}

/// By append with rotation, by nothing.
fn store_rotated<T: KvElement>(problem: &Problem<T>, backend: &mut dyn Backend) {
    let places = places(problem);
    let rotation = Rotation {
        table: &RotaryTable::new(problem.inputs.heads.head_dim, 1, 10_000.0).unwrap(),
        positions: &vec![0; places.len()],
    };
    let (k, v) = (T::elements(&problem.inputs.k), T::elements(&problem.inputs.v));
    backend.append_rotated(0, &places, Counters::default(), k, v, rotation).unwrap();
}

/// By import from a paged cache.
fn store_imported<T: KvElement>(problem: &Problem<T>, backend: &mut dyn Backend) {
    let pages: Vec<u32> = (0..problem.shape(1).pages).collect();
    let paged = PagedTokens {
        layer: 0,
        places: &places(problem),
        table: PagedTable { order: PagedOrder::Nhd, page_size: PAGE_TOKENS, pages: &pages },
    };
    backend
        .import(paged, [T::elements(&problem.inputs.k), T::elements(&problem.inputs.v)])
        .unwrap();
}

/// K of 0.5, V of 0.25, and infinity as the second leaf's V.
fn infinite_value_of_one_leaf(run: impl Fn(&Problem<f16>, &str)) {
    let heads = heads(4, 2, 64);
    let view = leaves(70, 3);
    let mut problem = Problem::<f16>::new(view, heads, AttentionParams::new(64), 0);
    problem.inputs.k.fill(f16::from_f32(0.5));
    problem.inputs.v.fill(f16::from_f32(0.25));
    problem.inputs.q.fill(f16::ONE);
    let own = |query| *visible_tokens(&problem.view, query).last().unwrap();
    let (page, token) = own(1);
    let width = (heads.kv_heads * heads.head_dim) as usize;
    let first = (page * PAGE_TOKENS + token) as usize * width;
    problem.inputs.v[first..first + width].fill(f16::INFINITY);
    problem.recompute();
    assert_eq!(problem.not_finite(), 4 * 64, "the definition spoils one query");
    run(&problem, "infinite V of the second of three leaves");
}

#[test]
fn an_infinite_value_of_one_leaf_stays_there_on_the_cpu() {
    infinite_value_of_one_leaf(on_cpu);
}

#[test]
fn an_infinite_value_of_one_leaf_stays_there_in_the_kernels() {
    infinite_value_of_one_leaf(on_kernels);
}

/// One bad element of K at each place that matters to a running maximum and to pages, logits falling and rising.
fn bad_key_everywhere<T: KvElement>(dim: u32, rows: usize, run: impl Fn(&Problem<T>, &str)) {
    for (seed, token) in (0..).zip([0, 1, 7, 8, 40, 63, 64, 100, 127, 128, 129]) {
        let soft_cap = (seed % 4 == 1).then_some(5.0);
        let params = AttentionParams { scale: 0.3, soft_cap };
        let mut problem = Problem::<T>::new(leaves(130, rows), heads(4, 2, dim), params, seed);
        let (page, token) = visible_tokens(&problem.view, 0)[token];
        let place = page * PAGE_TOKENS + token;
        // In one head only: the other's rows stay.
        plant(&mut problem, false, place, [seed as u32, 3], BAD[seed as usize % 3]);
        problem.recompute();
        assert!(problem.not_finite() <= 2 * rows * dim as usize);
        run(&problem, &format!("K of token {token}, {}", T::DTYPE));
    }
}

#[test]
fn a_bad_key_at_any_position_spoils_the_rows_that_see_it_on_the_cpu() {
    bad_key_everywhere::<f32>(64, 5, on_cpu);
    bad_key_everywhere::<f16>(64, 1, on_cpu);
    bad_key_everywhere::<bf16>(128, 20, on_cpu);
}

#[test]
fn a_bad_key_at_any_position_spoils_the_rows_that_see_it_in_the_kernels() {
    bad_key_everywhere::<f16>(64, 3, on_kernels);
    bad_key_everywhere::<bf16>(64, 20, on_kernels);
}

#[test]
fn bad_tokens_of_leaves_drafts_and_chunks_stay_with_those_who_see_them_on_the_cpu() {
    for seed in 0..24 {
        let view = || world([60, 64, 70, 130][seed as usize % 4], 1 + seed as u32 * 3);
        let plain = AttentionParams::new(64);
        check::<f32>(view(), heads(6, 2, 64), plain, seed, on_cpu);
        check::<f16>(view(), heads(4, 4, 64), plain, seed + 100, on_cpu);
        check::<bf16>(view(), heads(8, 1, 64), plain, seed + 200, on_cpu);
        check::<f32>(views::random(seed, 24), heads(2, 1, 64), plain, seed, on_cpu);
    }
}

#[test]
fn bad_tokens_of_leaves_drafts_and_chunks_stay_with_those_who_see_them_in_the_kernels() {
    for seed in 0..6 {
        let view = world([60, 64, 70, 130][seed as usize % 4], 1 + seed as u32 * 9);
        let (q, kv, dim) = [(4, 2, 64), (4, 1, 128), (2, 2, 64)][seed as usize % 3];
        let heads = heads(q, kv, dim);
        let params = AttentionParams::new(dim);
        if seed % 2 == 0 {
            check::<f16>(view, heads, params, seed, on_kernels);
        } else {
            check::<bf16>(view, heads, params, seed, on_kernels);
        }
    }
}
