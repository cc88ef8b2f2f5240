//! Contexts, streams and buffers of `cust` in calls of this library, with a fake driver.
#![cfg(feature = "cust")]

#[path = "../../cuda-loader/tests/fake/mod.rs"]
mod fake;

use std::path::Path;

use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use deft::cache::{CacheShape, PagePool};
use deft::cuda::{self, AttendBuffers, CudaDevice, CudaError, DevicePtr, RawStream};
use deft::plan::{PlanConfig, Planner};
use deft::tree::TokenForest;
use deft::{DType, Grouping};

#[test]
fn handles_of_cust_are_taken_and_a_refusing_driver_is_an_error() {
    let fake = fake::Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let context = cust::quick_init().unwrap();
    let device = CudaDevice::try_from(&context).unwrap();
    assert_eq!(device.ordinal(), 0);
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    // SAFETY: the stream lives to the end of the test.
    let ours = unsafe { cuda::Stream::borrow_cust(&device, &stream) }.unwrap();
    assert_eq!(ours.raw(), RawStream::from(&stream));
    assert_eq!(ours.raw(), RawStream(stream.as_inner() as usize));

    for code in [46, 999, 912] {
        fake.fail_from_now(u64::MAX, code);
        let refused = CudaDevice::try_from(&context).unwrap_err().to_string();
        // SAFETY: as above.
        let borrowed = unsafe { cuda::Stream::borrow_cust(&device, &stream) }.unwrap_err();
        fake.fail_from_now(0, 0);
        assert!(refused.contains(&code.to_string()), "{refused}");
        assert!(matches!(borrowed, CudaError::Driver { code: c, .. } if c == code));
    }
}

#[test]
fn slices_of_cust_are_rows_if_they_are_as_long() {
    let _fake = fake::Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let _context = cust::quick_init().unwrap();
    let shape = CacheShape { layers: 1, kv_heads: 2, head_dim: 64, dtype: DType::F16, pages: 8 };
    let mut forest = TokenForest::new(PagePool::new(8).unwrap());
    let root = forest.insert_root(100).unwrap();
    let mut planner = Planner::new(PlanConfig::new(Grouping::Flatten, 4, 64, 2)).unwrap();
    let plan = planner.plan(&forest.view(&[root]).unwrap()).unwrap();
    let buffer = |len| DeviceBuffer::from_slice(&vec![0u16; len]).unwrap();
    let (q, mut out, short) = (buffer(512), buffer(512), buffer(511));
    let mut lse = DeviceBuffer::from_slice(&[0f32; 8]).unwrap();
    let rows = AttendBuffers::from_cust(&shape, &plan, &q, &mut out, Some(&mut lse)).unwrap();
    assert_eq!(rows.q, DevicePtr(q.as_device_ptr().as_raw()));
    assert_eq!(rows.lse, DevicePtr::from(&lse));
    let refused = AttendBuffers::from_cust(&shape, &plan, &short, &mut out, None).unwrap_err();
    assert_eq!(refused.to_string(), "q has 511 elements; expected 512");
    let wide = DeviceBuffer::from_slice(&[0f32; 512]).unwrap();
    let mut wide_out = DeviceBuffer::from_slice(&[0f32; 512]).unwrap();
    let refused = AttendBuffers::from_cust(&shape, &plan, &wide, &mut wide_out, None);
    assert!(refused.unwrap_err().to_string().contains("4 bytes"));
}
