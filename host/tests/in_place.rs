//! What attention in place on a GPU refuses, launches and copies, with a fake driver.
#![cfg(feature = "cuda")]

#[path = "../../cuda-loader/tests/fake/mod.rs"]
mod fake;

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::Mutex;

use deft::attention::{AttentionParams, BackendError, PagedAttend, PagedTensor};
use deft::cache::Elements;
use deft::cuda::{CudaDevice, DeviceBuffer, DevicePtr, DeviceRows, InPlace, RawStream, Stream};
use deft::plan::{BlockTables, PagedPlan};
use deft::{DType, Grouping, PlanUpdate, bf16};
use fake::Fake;

const BLOCKS: usize = 10;
const TOKEN: usize = 2 * 64;

fn fake() -> Fake {
    let fake = Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fake.fail_from_now(0, 0);
    fake
}

/// Two sequences of a cache with blocks of 16 tokens, 2 KV heads and head dimension 64.
struct Setting {
    stream: Stream,
    in_place: InPlace,
    plan: PagedPlan,
    kv: DeviceBuffer<bf16>,
    q: DeviceBuffer<bf16>,
    out: DeviceBuffer<bf16>,
}

fn tables(lens: &[i32; 2]) -> BlockTables<'_> {
    let ids = &[0, 1, 2, 0, 1, 9];
    BlockTables { ids, stride: 3, lens, page_size: 16, queries: &[], masks: &[] }
}

fn setting() -> Setting {
    let device = CudaDevice::new(0).unwrap();
    let in_place = InPlace::new(&device, [4, 2, 64], DType::Bf16).unwrap();
    let config = in_place.plan_config(Grouping::Flatten);
    let buffer =
        |what, len| DeviceBuffer::from_slice(&device, what, &vec![bf16::ZERO; len]).unwrap();
    Setting {
        stream: Stream::new(&device).unwrap(),
        plan: PagedPlan::new(config, &tables(&[40, 37])).unwrap(),
        kv: buffer("K, then V", 2 * BLOCKS * 16 * TOKEN),
        q: buffer("queries", 2 * 4 * 64),
        out: buffer("outputs", 2 * 4 * 64),
        in_place,
    }
}

fn rows(pointer: DevicePtr, len: usize, stream: RawStream) -> DeviceRows<bf16> {
    // SAFETY: the fake driver's kernels read nothing.
    unsafe { DeviceRows::new(pointer, len, stream) }
}

impl Setting {
    /// HND, K and V one after the other in one tensor.
    fn call(&self) -> PagedAttend<'static> {
        let (half, stream) = (BLOCKS * 16 * TOKEN, self.stream.raw());
        let paged = |begin: usize| PagedTensor {
            elements: rows(self.kv.pointer().offset(2 * begin as u64), half, stream).elements(),
            blocks: BLOCKS,
            strides: [16 * TOKEN, 64, 16 * 64],
        };
        PagedAttend {
            k: paged(0),
            v: paged(half),
            kv_heads: 2,
            head_dim: 64,
            q: rows(self.q.pointer(), self.q.len(), stream).elements(),
            out: rows(self.out.pointer(), self.out.len(), stream).elements_mut(),
            lse: None,
            params: AttentionParams::new(64),
        }
    }

    fn attend(
        &mut self,
        change: impl FnOnce(&mut PagedAttend<'static>),
    ) -> Result<(), BackendError> {
        let mut call = self.call();
        change(&mut call);
        self.in_place.attend(&self.plan, call)
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name_before_anything_is_launched() {
    let fake = fake();
    let mut setting = setting();
    fake.fail_from_now(0, 0);
    let (kv, half, stream) = (setting.kv.pointer(), BLOCKS * 16 * TOKEN, setting.stream.raw());
    static HOST: [bf16; 2 * 4 * 64] = [bf16::ZERO; 2 * 4 * 64];
    type Change = Box<dyn FnOnce(&mut PagedAttend<'static>)>;
    let cases: [(Change, String); 9] = [
        (
            Box::new(|call| call.v.strides[1] = 60),
            "v is of strides [2048, 60, 1024]; expected multiples of 8: rows are read 16 bytes at a time".into(),
        ),
        (
            Box::new(move |call| call.k.elements = rows(kv.offset(8), half, stream).elements()),
            format!("k begins at {:#x}; it must be a multiple of 16", kv.0 + 8),
        ),
        (
            Box::new(|call| call.q = Elements::Bf16(&HOST)),
            "q is in the host's memory; rows of a captured step, and of attention in place, are on the GPU".into(),
        ),
        (
            Box::new(move |call| call.v.elements = rows(kv, half, RawStream(1)).elements()),
            format!("v is on stream 0x1; expected on that of k, {:#x}", stream.0),
        ),
        (Box::new(|call| call.v.blocks = 9), "block_tables[5] names page 9, v has 9".into()),
        (
            Box::new(|call| call.k.blocks = 11),
            "k has 20480 elements, [blocks, page_size, kv_heads, head_dim] by its strides takes 22528".into(),
        ),
        (
            Box::new(|call| (call.head_dim, call.kv_heads) = (128, 1)),
            "kv_heads is 1; expected 2, as it was made for".into(),
        ),
        (
            Box::new(move |call| call.q = rows(kv, 7, stream).elements()),
            "q has 7 elements, [rows, q_heads, head_dim] takes 512".into(),
        ),
        (
            Box::new(|call| call.params.scale = f32::INFINITY),
            "scale is inf; it must be finite".into(),
        ),
    ];
    for (change, message) in cases {
        assert_eq!(setting.attend(change).unwrap_err().to_string(), message);
    }
    assert_eq!(fake.calls_named("cuLaunchKernelEx"), 0);
    setting.attend(|_| ()).unwrap();
    assert!(fake.calls_named("cuLaunchKernelEx") > 0);
    let device = CudaDevice::new(0).unwrap();
    for (heads, dtype, message) in [
        ([3, 2, 64], DType::Bf16, "q_heads is 3; expected a positive multiple of kv_heads, 2"),
        (
            [2, 2, 256],
            DType::F16,
            "head_dim is 256; expected 64 or 128, which the kernels read in place",
        ),
        ([2, 2, 64], DType::F32, "the CUDA kernels store bf16 and f16; f32 runs on the CPU"),
    ] {
        assert_eq!(InPlace::new(&device, heads, dtype).unwrap_err().to_string(), message);
    }
}

static LAUNCHED: Mutex<Vec<(String, Vec<u64>)>> = Mutex::new(Vec::new());

extern "C" fn note(name: *const c_char, _blocks: u32, arguments: *const u64, count: usize) {
    // SAFETY: the fake driver's text and its arguments.
    let (name, arguments) =
        unsafe { (CStr::from_ptr(name), std::slice::from_raw_parts(arguments, count)) };
    let name = name.to_string_lossy().into_owned();
    LAUNCHED.lock().unwrap().push((name, arguments.to_vec()));
}

#[test]
fn the_kernel_is_told_where_the_callers_rows_are() {
    let fake = fake();
    let mut setting = setting();
    // SAFETY: a function that may be called at any time.
    unsafe { (fake.kernels)(note) };
    LAUNCHED.lock().unwrap().clear();
    setting.attend(|_| ()).unwrap();
    setting.stream.synchronize().unwrap();
    let launched = LAUNCHED.lock().unwrap();
    let (_, arguments) = launched.iter().find(|(name, _)| name == "attend_boxes_bf16_d64").unwrap();
    let k = setting.kv.pointer().0;
    // The fake driver's tensor maps are full of the tensor's address.
    assert_eq!(arguments[..3], [setting.q.pointer().0, k, k + (2 * BLOCKS * 16 * TOKEN) as u64]);
    // Blocks of two to the fourth tokens.
    assert_eq!(arguments[17..], [4]);
}

#[test]
fn layers_of_a_step_copy_nothing_and_a_step_what_has_changed() {
    let fake = fake();
    let mut setting = setting();
    // SAFETY: it takes nothing.
    let bytes = || unsafe { (fake.bytes)() };
    setting.attend(|_| ()).unwrap();
    let before = bytes();
    setting.attend(|_| ()).unwrap();
    assert_eq!(bytes(), before, "another layer");
    let update = setting.plan.update(&tables(&[41, 38])).unwrap();
    assert_eq!(update, PlanUpdate::Unchanged);
    assert!(!setting.in_place.update(&setting.plan, &setting.stream).unwrap());
    assert_eq!(bytes(), before + 8, "two lengths");
    setting.attend(|_| ()).unwrap();
    assert_eq!(bytes(), before + 8, "after the update");
    setting.plan.update(&tables(&[42, 39])).unwrap();
    let Setting { stream, in_place, plan, .. } = &mut setting;
    let captured = stream.capture(|stream| in_place.update(plan, stream).map(drop));
    assert_eq!(
        captured.unwrap_err().to_string(),
        "plan is newer than what the device has; expected brought there before its stream is captured"
    );
    in_place.update(plan, stream).unwrap();
    stream.capture(|stream| in_place.update(plan, stream).map(drop)).unwrap();
    assert_eq!(bytes(), before + 16, "the lengths, not captured");
}
