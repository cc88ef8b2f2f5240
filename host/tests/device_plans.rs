//! What a GPU's plans and copies are checked against before anything is computed, with a fake driver.
#![cfg(feature = "cuda")]

#[path = "../../cuda-loader/tests/fake/mod.rs"]
mod fake;

use std::ops::Range;
use std::path::Path;

use deft::attention::{Attend, AttentionParams, Backend, Counters, PagedTokens};
use deft::cache::{CacheShape, Elements, ElementsMut, PagePool, PagedOrder, PagedTable};
use deft::cuda::{
    AttendBuffers, CudaBackend, CudaCache, CudaDevice, CudaError, CudaPlan, DevicePtr,
    PlanCapacity, Stream,
};
use deft::plan::{Patch, Plan, Planner};
use deft::tree::{NodeKey, TokenForest};
use deft::{DType, Grouping, bf16};
use fake::Fake;

const GROUP: u32 = 2;

fn shape(kv_heads: u32) -> CacheShape {
    CacheShape { layers: 1, kv_heads, head_dim: 64, dtype: DType::Bf16, pages: 256 }
}

fn fake() -> Fake {
    Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn forest(leaves: usize) -> (TokenForest, Vec<NodeKey>) {
    let mut forest = TokenForest::new(PagePool::new(256).unwrap());
    let root = forest.insert_root(300).unwrap();
    let leaves = forest.fork(root, leaves).unwrap();
    forest.extend(&leaves, 64).unwrap();
    (forest, leaves)
}

struct Setting {
    device: CudaDevice,
    stream: Stream,
    cache: CudaCache,
    forest: TokenForest,
    leaves: Vec<NodeKey>,
    plan: Plan,
    on_device: CudaPlan,
}

fn setting() -> Setting {
    let device = CudaDevice::new(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let cache = CudaCache::new(&device, shape(1), 64).unwrap();
    let (forest, leaves) = forest(5);
    let config = cache.plan_config(Grouping::Flatten, GROUP);
    let plan = Planner::new(config).unwrap().plan(&forest.view(&leaves).unwrap()).unwrap();
    let capacity = PlanCapacity::of(&plan).scaled(2);
    let mut on_device = cache.reserve(capacity, GROUP).unwrap();
    on_device.update(&plan, &stream).unwrap();
    Setting { device, stream, cache, forest, leaves, plan, on_device }
}

fn attend(cache: &CudaCache, plan: &CudaPlan, stream: &Stream) -> Result<(), CudaError> {
    let buffers = AttendBuffers { q: DevicePtr::NULL, out: DevicePtr::NULL, lse: DevicePtr::NULL };
    let params = AttentionParams::new(64);
    // SAFETY: the fake driver's kernels do nothing.
    unsafe { cache.attend(0, plan, &buffers, &params, stream.raw()) }
}

#[test]
fn a_device_plan_serves_caches_of_the_heads_it_was_reserved_for() {
    let _fake = fake();
    let setting = setting();
    attend(&setting.cache, &setting.on_device, &setting.stream).unwrap();
    let wider = CudaCache::new(&setting.device, shape(2), 64).unwrap();
    let refused = attend(&wider, &setting.on_device, &setting.stream).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the device plan was reserved for 1 KV heads of 64 on device 0; the cache has 2 KV heads of 64 on device 0"
    );
}

#[test]
fn of_a_patched_plan_only_the_words_that_changed_are_copied() {
    let _fake = fake();
    let mut setting = setting();
    let (on_device, stream) = (&mut setting.on_device, &setting.stream);
    let (mut plan, forest) = (setting.plan, &mut setting.forest);
    let mut grow = |leaf: usize, plan: &mut Plan| {
        let cursor = forest.growth_cursor();
        forest.append(setting.leaves[leaf], 64).unwrap();
        let growth = forest.growth_since(cursor).unwrap();
        let mut dirty = Vec::new();
        assert_eq!(plan.patch(growth, &mut dirty), Patch::Patched);
        4 * dirty.iter().map(Range::len).sum::<usize>()
    };
    let changed = grow(2, &mut plan);
    assert_eq!(on_device.update(&plan, stream), Ok(changed));
    assert_eq!(on_device.update(&plan, stream), Ok(0));
    // Twice over, the first patch's words are not among the second's.
    grow(0, &mut plan);
    let second = grow(1, &mut plan);
    assert!(on_device.update(&plan, stream).unwrap() > second);
    assert_eq!(on_device.update(&plan, stream), Ok(0));
}

#[test]
fn a_plan_that_came_in_part_is_not_computed_and_comes_whole_the_next_time() {
    let fake = fake();
    let mut setting = setting();
    let stream = &setting.stream;
    let whole = setting.on_device.update(&Plan::empty(), stream);
    assert!(whole.is_err(), "the empty plan is of other heads");
    let (forest, leaves) = forest(9);
    // A plan with all parts, partial results to merge among them.
    let config = setting.cache.plan_config(Grouping::NodeChunk, GROUP);
    let next = Planner::new(config).unwrap().plan(&forest.view(&leaves).unwrap()).unwrap();
    let capacity = PlanCapacity::of(&next).max(PlanCapacity::of(&setting.plan));
    // Of each call that the change of plans makes, one fails.
    let mut call = 1;
    loop {
        let mut on_device = setting.cache.reserve(capacity.clone(), GROUP).unwrap();
        on_device.update(&setting.plan, stream).unwrap();
        fake.fail_from_now(call, 46);
        let outcome = on_device.update(&next, stream);
        let calls = fake.calls_made();
        fake.fail_from_now(0, 0);
        if outcome.is_err() {
            assert_eq!(attend(&setting.cache, &on_device, stream), Err(CudaError::PlanMixed));
            assert!(on_device.update(&next, stream).unwrap() > 0);
        }
        attend(&setting.cache, &on_device, stream).unwrap();
        assert_eq!(on_device.update(&next, stream), Ok(0));
        if calls < call {
            break;
        }
        call += 1;
    }
    assert!(call > 8, "{call} calls");
}

/// The plan of 1 query once ran as the plan of 100 that was on the device, if the caller said they were equal.
#[test]
fn each_plan_is_brought_to_the_device_once() {
    let fake = fake();
    let device = CudaDevice::new(0).unwrap();
    let mut backend = CudaBackend::new(&device, shape(1)).unwrap();
    let (forest, leaves) = forest(20);
    let config = backend.plan_config(Grouping::Flatten, GROUP);
    let mut planner = Planner::new(config).unwrap();
    let large = planner.plan(&forest.view(&leaves).unwrap()).unwrap();
    let mut small = Plan::empty();
    planner.plan_into(&forest.view(&leaves[..1]).unwrap(), &mut small).unwrap();
    let mut calls = |plan: &Plan| {
        let rows = (plan.queries() * GROUP) as usize;
        let q = vec![bf16::ZERO; rows * 64];
        let (mut out, mut lse) = (q.clone(), vec![0.0; rows]);
        fake.fail_from_now(0, 0);
        backend
            .attend(Attend {
                layer: 0,
                plan,
                counters: Counters {
                    lengths: forest.lengths(),
                    tail_pages: forest.tail_pages(),
                    directory: None,
                    residues: None,
                },
                q: Elements::Bf16(&q),
                out: ElementsMut::Bf16(&mut out),
                lse: Some(ElementsMut::F32(&mut lse)),
                params: AttentionParams::new(64),
            })
            .unwrap();
        fake.calls_made()
    };
    calls(&large);
    let again = calls(&large);
    assert!(calls(&small) > again, "another plan is another upload");
    assert_eq!(calls(&small.clone()), again);
    planner.plan_into(&forest.view(&leaves[1..2]).unwrap(), &mut small).unwrap();
    assert!(calls(&small) > again, "so is another in the same memory");
}

#[test]
fn one_token_of_a_large_foreign_cache_is_a_small_copy() {
    let fake = fake();
    let device = CudaDevice::new(0).unwrap();
    let mut backend = CudaBackend::new(&device, shape(1)).unwrap();
    let mut foreign = [(); 2].map(|()| vec![bf16::ONE; 1000 * 16 * 64]);
    let paged = PagedTokens {
        layer: 0,
        places: &[70],
        table: PagedTable { order: PagedOrder::Hnd, page_size: 16, pages: &[999] },
    };
    // SAFETY: takes nothing.
    let bytes = || unsafe { (fake.bytes)() };
    let before = bytes();
    let [k, v] = &foreign;
    backend.import(paged, [Elements::Bf16(k), Elements::Bf16(v)]).unwrap();
    let imported = bytes() - before;
    let [k, v] = &mut foreign;
    let onto = [k, v].map(|foreign| ElementsMut::Bf16(foreign));
    backend.export(paged, onto).unwrap();
    let exported = bytes() - before - imported;
    // A row of 64 elements each of K and V, a place and a page.
    assert_eq!((imported, exported), (264, 264));
}
