//! What happens when driver calls fail, with a fake driver in which any call can be made to: an error with the
//! driver's code, nothing left behind, and objects that go on to work.
#![cfg(feature = "cuda")]

#[path = "../../cuda-loader/tests/fake/mod.rs"]
mod fake;

use std::path::Path;

use deft::attention::AttentionParams;
use deft::cache::{CacheShape, PagePool};
use deft::cuda::{
    AttendBuffers, CudaCache, CudaDevice, CudaError, DeviceBuffer, Event, Graph, PlanCapacity,
    Stream,
};
use deft::plan::{Plan, Planner};
use deft::tree::TokenForest;
use deft::{DType, Grouping};
use fake::Fake;

const SHAPE: CacheShape =
    CacheShape { layers: 1, kv_heads: 1, head_dim: 64, dtype: DType::Bf16, pages: 16 };

/// Codes of newer drivers than any enum of ours or `cust`'s, and ones nobody has.
const CODES: [i32; 5] = [46, 999, 912, -7, i32::MAX];

fn fake() -> Fake {
    let fake = Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fake.fail_from_now(0, 0);
    fake
}

fn code_of(error: &CudaError) -> Option<i32> {
    match error {
        CudaError::Driver { code, .. }
        | CudaError::Launch { code, .. }
        | CudaError::Jit { code, .. } => Some(*code),
        CudaError::NoDevice { reason } => {
            CODES.into_iter().find(|code| reason.contains(&format!("answered {code} ")))
        }
        _ => None,
    }
}

/// Everything that is not the cache's.
fn use_the_driver() -> Result<(), CudaError> {
    let device = CudaDevice::new(0)?;
    let stream = Stream::new(&device)?;
    let (start, end) = (Event::new(&device)?, Event::new(&device)?);
    let buffer = DeviceBuffer::from_slice(&device, "numbers", &[1u32; 100])?;
    start.record(&stream)?;
    buffer.upload(3, &[5; 7], &stream)?;
    buffer.write(10, &[6; 7], &stream)?;
    let mut numbers = [0; 100];
    buffer.read(0, &mut numbers, &stream)?;
    end.record(&stream)?;
    let mut graph: Graph = stream.capture(|stream| buffer.fill_bytes(0, stream))?;
    // SAFETY: the buffers are there.
    unsafe { graph.launch(&stream) }?;
    end.microseconds_since(&start)?;
    stream.is_idle()?;
    stream.synchronize()?;
    assert_eq!(numbers[3..10], [5; 7]);
    Ok(())
}

fn plan(cache: &CudaCache) -> (TokenForest, Plan) {
    let mut forest = TokenForest::new(PagePool::new(SHAPE.pages).unwrap());
    let root = forest.insert_root(300).unwrap();
    let leaves = forest.fork(root, 3).unwrap();
    forest.extend(&leaves, 20).unwrap();
    let config = cache.plan_config(Grouping::Flatten, 2);
    let plan = Planner::new(config).unwrap().plan(&forest.view(&leaves).unwrap()).unwrap();
    (forest, plan)
}

fn use_the_cache() -> Result<(), CudaError> {
    let device = CudaDevice::new(0)?;
    let stream = Stream::new(&device)?;
    let mut cache = CudaCache::new(&device, SHAPE, 2)?;
    let (forest, plan) = plan(&cache);
    cache.reserve_slots(forest.lengths().len())?;
    cache.set_counters(forest.lengths(), forest.tail_pages(), &stream)?;
    let mut on_device = cache.reserve(PlanCapacity::of(&plan), 2)?;
    on_device.update(&plan, &stream)?;
    let rows = DeviceBuffer::from_slice(&device, "rows", &[0u16; 3 * 2 * 64])?;
    let buffers = AttendBuffers { q: rows.pointer(), out: rows.pointer(), lse: Default::default() };
    let params = AttentionParams::new(64);
    // SAFETY: a row for each query, and kernels that do nothing.
    unsafe { cache.attend(0, &on_device, &buffers, &params, stream.raw()) }?;
    stream.synchronize()
}

/// Parts of the names of calls whose failure nobody is told of.
const UNNOTICED: [&str; 8] =
    ["Destroy", "Free", "Release", "Unload", "cuCtx", "Record", "cuEventSynchronize", "Unmap"];

/// Memory that comes for two of three extents and goes with the cache.
fn use_elastic_pages() -> Result<(), CudaError> {
    let device = CudaDevice::new(0)?;
    let stream = Stream::new(&device)?;
    let shape = CacheShape { layers: 3, pages: 48, ..SHAPE };
    let mut cache = CudaCache::elastic(&device, shape, 2)?;
    let pages = cache.elastic_pages().expect("it is elastic");
    let extent = 16 * shape.page_bytes();
    for (mapped, number) in [2, 0, 0].into_iter().enumerate() {
        pages.map(number, &stream)?;
        assert_eq!(pages.bytes(), extent * (mapped as u64 + 1).min(2));
    }
    stream.synchronize()?;
    let mut row = [1; 64];
    cache.pool().read(0, &mut row, &stream)?;
    assert_eq!(row, [0; 64], "memory begins as zeros");
    Ok(())
}

/// Runs `work` once for each of its driver calls, with that call failing.
fn fail_each_call(fake: &Fake, work: fn() -> Result<(), CudaError>) {
    let misused = fake.misused();
    fake.fail_from_now(0, 0);
    work().unwrap();
    let calls = fake.calls_made();
    assert_eq!(fake.live_objects(), 0);
    assert_eq!(fake.misused(), misused);
    for call in 1..=calls {
        let code = CODES[call as usize % CODES.len()];
        fake.fail_from_now(call, code);
        let outcome = work();
        let failed = fake.failed();
        fake.fail_from_now(0, 0);
        let what = format!("{failed}, call {call} of {calls}, failing with {code}");
        match outcome {
            Err(error) => assert_eq!(code_of(&error), Some(code), "{what}: {error}"),
            // Nobody is told of failures in a `drop`, and a failed record can be made up for.
            Ok(()) => {
                assert!(UNNOTICED.iter().any(|part| failed.contains(part)), "{what}: unnoticed")
            }
        }
        assert_eq!(fake.live_objects(), 0, "{what}: left behind");
        assert_eq!(fake.misused(), misused, "{what}: misuse");
    }
}

#[test]
fn one_failing_call_is_an_error_and_leaves_nothing_behind() {
    let fake = fake();
    fail_each_call(&fake, use_the_driver);
}

#[test]
fn one_failing_call_of_the_cache_is_an_error_and_leaves_nothing_behind() {
    let fake = fake();
    fail_each_call(&fake, use_the_cache);
}

#[test]
fn one_failing_call_of_elastic_pages_is_an_error_and_leaves_nothing_behind() {
    let fake = fake();
    fail_each_call(&fake, use_elastic_pages);
}

#[test]
fn pages_that_are_not_whole_extents_are_refused() {
    let _fake = fake();
    let device = CudaDevice::new(0).unwrap();
    let refused = CudaCache::elastic(&device, CacheShape { pages: 40, ..SHAPE }, 2).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pages is 40; expected a multiple of 16, the pages of an extent"
    );
}

#[test]
fn codes_that_nobody_knows_are_errors_with_their_number_at_every_call() {
    let fake = fake();
    for code in CODES {
        fake.fail_from_now(u64::MAX, code);
        let refused = CudaDevice::new(0).unwrap_err();
        assert_eq!(code_of(&refused), Some(code), "{refused}");
        fake.fail_from_now(0, 0);
        let device = CudaDevice::new(0).unwrap();
        let stream = Stream::new(&device).unwrap();
        let event = Event::new(&device).unwrap();
        let buffer = DeviceBuffer::from_slice(&device, "numbers", &[1u32; 9]).unwrap();
        fake.fail_from_now(u64::MAX, code);
        let mut numbers = [0; 9];
        let errors = [
            Stream::new(&device).err(),
            Event::new(&device).err(),
            event.record(&stream).err(),
            stream.synchronize().err(),
            stream.is_idle().err(),
            stream.capture::<CudaError>(|_| Ok(())).err(),
            buffer.upload(0, &[1], &stream).err(),
            buffer.write(0, &[1], &stream).err(),
            buffer.read(0, &mut numbers, &stream).err(),
            buffer.fill_bytes(0, &stream).err(),
            device.kernel("merge_bf16_d64", &[]).err(),
        ];
        for error in errors {
            let error = error.expect("every call fails");
            assert_eq!(code_of(&error), Some(code), "{error}");
        }
        drop((buffer, event, stream, device));
        fake.fail_from_now(0, 0);
        assert_eq!(fake.live_objects(), 0);
    }
}

#[test]
fn a_capture_ends_with_an_error_and_with_a_panic() {
    let fake = fake();
    let misused = fake.misused();
    let device = CudaDevice::new(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let before = fake.live_objects();
    let error = CudaError::PlanMixed;
    let refused = stream.capture::<CudaError>(|_| Err(error.clone()));
    assert_eq!(refused.unwrap_err(), error);
    stream.synchronize().unwrap();
    let work = std::panic::AssertUnwindSafe(|| stream.capture::<CudaError>(|_| panic!("work")));
    std::panic::catch_unwind(work).unwrap_err();
    stream.synchronize().unwrap();
    stream.capture::<CudaError>(|_| Ok(())).unwrap();
    assert_eq!(fake.live_objects(), before);
    assert_eq!(fake.misused(), misused);
}

/// Copies of the fake driver run as late as they may.
#[test]
fn what_was_uploaded_may_change_and_go_at_once() {
    let fake = fake();
    let misused = fake.misused();
    let device = CudaDevice::new(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let buffer = DeviceBuffer::from_slice(&device, "numbers", &[0u32; 100]).unwrap();
    for number in 0..100 {
        let mut one = vec![number as u32];
        buffer.upload(number, &one, &stream).unwrap();
        one[0] = u32::MAX;
    }
    let mut numbers = [0; 100];
    buffer.read(0, &mut numbers, &stream).unwrap();
    assert_eq!(numbers, std::array::from_fn(|number| number as u32));
    assert_eq!(fake.misused(), misused);
}

#[test]
fn counters_that_could_not_be_copied_are_copied_the_next_time() {
    let fake = fake();
    let device = CudaDevice::new(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let mut cache = CudaCache::new(&device, SHAPE, 4).unwrap();
    fake.fail_from_now(0, 0);
    cache.set_counters(&[9, 8, 7], &[1, 2, 3], &stream).unwrap();
    for call in 1..=fake.calls_made() {
        let lengths = [call as u32; 3];
        fake.fail_from_now(call, 46);
        // Restoring the thread's context may be what fails.
        let _ = cache.set_counters(&lengths, &[call as u32 + 1; 3], &stream);
        fake.fail_from_now(0, 0);
        cache.set_counters(&lengths, &[call as u32 + 1; 3], &stream).unwrap();
        let mut there = [0; 3];
        cache.lengths().read(0, &mut there, &stream).unwrap();
        assert_eq!(there, lengths);
    }
}
