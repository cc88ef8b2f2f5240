//! What the suites that need a GPU share.
//!
//! `DEFT_FORESTS`, `DEFT_RUNS`, `DEFT_STEPS`, `DEFT_REASONING` and `DEFT_SEED` set how much they do and where random
//! numbers start; `DEFT_FILTER` leaves the kernels whose name contains it, such as `bf16_d128` or `rms_norm`. Kernels
//! that the files `DEFT_PTX` have, separated by commas, are taken from there.

use std::fmt;
use std::io::Write;

use bytemuck::Pod;
use deft::attention::{AttentionParams, Backend, BackendError, PagedAttend, PagedTensor};
use deft::cache::{DType, Elements, HEAD_DIMS, KERNEL_HEAD_DIMS, KvElement};
use deft::cuda::{
    Arch, CudaBackend, CudaDevice, CudaError, DeviceBuffer, DeviceRows, InPlace, Stream,
};
use deft::plan::{HeadShape, PagedPlan};
use kernels_gpu::attention::tile::max_rows;
use kernels_gpu::layout::CORE;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::forests::pick;
use crate::oracle::Verdict;
use crate::problem::heads;
pub use crate::setting;
use crate::transfers::Inspect;
use crate::watchdog::Watchdog;

/// KV heads and query heads a KV head: MHA, GQA up to 16, MQA, odd ones.
const HEADS: [(u32, u32); 11] =
    [(1, 1), (2, 1), (8, 1), (8, 4), (1, 5), (2, 7), (3, 3), (4, 8), (1, 12), (1, 16), (1, 71)];
/// Wrong cases that are described before the rest are only counted.
const DESCRIBED: u32 = 10;

/// A GPU with the kernels of one architecture.
#[derive(Debug)]
pub struct Gpu {
    /// The device.
    pub device: CudaDevice,
    /// A stream of its own.
    pub stream: Stream,
    /// Ends the program where a kernel hangs.
    pub watchdog: Watchdog,
}

impl Gpu {
    /// The first GPU with its own kernels, and again with those for Ampere where they are others and none are named by
    /// `DEFT_PTX`. Says so, loud enough for tests that pass, if there is no GPU.
    ///
    /// # Panics
    /// If there is one that cannot be used.
    pub fn each() -> Vec<Self> {
        let open = |arch: Option<Arch>| -> Result<Self, CudaError> {
            let device = CudaDevice::new(0)?;
            if let Some(arch) = arch {
                device.use_arch(arch)?;
            }
            Ok(Self { stream: Stream::new(&device)?, device, watchdog: Watchdog::start() })
        };
        let own = match open(None) {
            Err(CudaError::NoDevice { .. }) => {
                say("skipped: no GPU");
                return Vec::new();
            }
            own => own.unwrap(),
        };
        say(&own.device.describe());
        let named = std::env::var("DEFT_PTX").ok();
        for file in named.iter().flat_map(|files| files.split(',')) {
            own.device.use_ptx(file, std::fs::read_to_string(file).unwrap()).unwrap();
        }
        if named.is_some() || own.device.arch() == Arch::Sm80 {
            return vec![own];
        }
        vec![own, open(Some(Arch::Sm80)).unwrap()]
    }

    /// The architecture of the kernels.
    pub fn arch(&self) -> &'static str {
        self.device.arch().name()
    }

    /// Waits for the stream. What hangs, the watchdog ends.
    ///
    /// # Panics
    /// If a kernel failed.
    pub fn settle(&self, what: &str) {
        self.watchdog.now(what);
        self.stream.synchronize().unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    /// A buffer with `data`.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn upload<T: Pod>(&self, data: &[T]) -> DeviceBuffer<T> {
        DeviceBuffer::from_slice(&self.device, "input", data).unwrap()
    }

    /// A buffer whose bits are all ones: NaNs, or ids that no row has.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn unwritten<T: Pod>(&self, len: usize) -> DeviceBuffer<T> {
        let buffer = DeviceBuffer::uninitialized(&self.device, "output", len).unwrap();
        buffer.fill_bytes(u8::MAX, &self.stream).unwrap();
        buffer
    }

    /// What is in a buffer once the stream is done.
    ///
    /// # Panics
    /// If a kernel failed.
    pub fn download<T: Pod>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        self.settle("reading results");
        let mut data = vec![T::zeroed(); buffer.len()];
        buffer.read(0, &mut data, &self.stream).unwrap();
        data
    }
}

impl Gpu {
    /// Attention in place over copies of a call's K, V and queries on the device, into its outputs.
    ///
    /// # Panics
    /// If a kernel failed.
    pub fn attend_in_place<T: KvElement>(
        &self,
        in_place: &mut InPlace,
        plan: &PagedPlan,
        call: PagedAttend<'_>,
    ) -> Result<(), BackendError> {
        let copy = |elements: Elements<'_>| {
            self.upload::<u16>(bytemuck::cast_slice(
                elements.bytes().expect("rows are on the host"),
            ))
        };
        let [k, v, q] = [call.k.elements, call.v.elements, call.q].map(copy);
        let out = self.unwritten::<u16>(call.out.len());
        let lse = call.lse.as_ref().map(|lse| self.unwritten::<f32>(lse.len()));
        // SAFETY: the buffers are on the device, and outlive the wait below.
        let rows = |buffer: &DeviceBuffer<u16>| unsafe {
            DeviceRows::<T>::new(buffer.pointer(), buffer.len(), self.stream.raw())
        };
        let lse_rows = lse.as_ref().map(|lse| {
            // SAFETY: as above.
            let rows =
                unsafe { DeviceRows::<f32>::new(lse.pointer(), lse.len(), self.stream.raw()) };
            rows.elements_mut()
        });
        let on_device = PagedAttend {
            k: PagedTensor { elements: rows(&k).elements(), ..call.k },
            v: PagedTensor { elements: rows(&v).elements(), ..call.v },
            q: rows(&q).elements(),
            out: rows(&out).elements_mut(),
            lse: lse_rows,
            ..call
        };
        let result = in_place.attend(plan, on_device);
        let bytes = call.out.into_bytes().expect("rows are on the host");
        bytes.copy_from_slice(bytemuck::cast_slice(&self.download(&out)));
        if let (Some(to), Some(lse)) = (call.lse, lse) {
            let to = to.into_typed::<f32>().expect("an LSE is f32 on the host");
            to.copy_from_slice(&self.download(&lse));
        }
        result
    }
}

impl Inspect for CudaBackend {
    fn pool(&self) -> Vec<u16> {
        let pool = self.cache().pool();
        let stream = Stream::new(self.cache().device()).unwrap();
        let mut elements = vec![0; pool.len()];
        pool.read(0, &mut elements, &stream).unwrap();
        unpadded(self, elements)
    }
}

/// Pages as of heads that are not padded.
///
/// # Panics
/// If there is anything but zeros in the padding.
fn unpadded(backend: &CudaBackend, pool: Vec<u16>) -> Vec<u16> {
    let [own, padded] = [*backend.shape(), backend.stored()].map(|shape| shape.head_dim);
    // Eight tokens' part of half a head, one chunk after the other.
    let [own, padded] = [own, padded].map(|head_dim| (head_dim / 2 * CORE) as usize);
    let parts = pool.chunks_exact(padded).flat_map(|part| {
        assert!(part[own..].iter().all(|&bits| bits == 0), "the padding was written");
        &part[..own]
    });
    parts.copied().collect()
}

/// Whether `DEFT_FILTER` lets kernels of this name through.
pub fn wanted(name: &str) -> bool {
    std::env::var("DEFT_FILTER").map_or(true, |part| name.contains(&part))
}

/// The 16-bit types with every head dimension, those that are wanted.
pub fn variants() -> Vec<(DType, u32)> {
    variants_of(&HEAD_DIMS)
}

/// The same of the head dimensions that there are kernels for, which calls with device pointers take.
pub fn kernel_variants() -> Vec<(DType, u32)> {
    variants_of(&KERNEL_HEAD_DIMS)
}

fn variants_of(dims: &[u32]) -> Vec<(DType, u32)> {
    let dims = dims.iter().copied();
    let all = dims.flat_map(|dim| [(DType::Bf16, dim), (DType::F16, dim)]);
    all.filter(|(dtype, dim)| wanted(&format!("{dtype}_d{dim}"))).collect()
}

/// Random head counts of a layer, now and then with a soft cap.
pub fn random_layer(rng: &mut SmallRng, head_dim: u32) -> (HeadShape, AttentionParams) {
    let fit = HEADS.into_iter().filter(|&(_, group)| group <= max_rows(head_dim));
    let (kv_heads, group) = pick(rng, &fit.collect::<Vec<_>>());
    let mut params = AttentionParams::new(head_dim);
    if rng.random_ratio(1, 4) {
        params.soft_cap = Some(rng.random_range(5..=50) as f32);
    }
    (heads(kv_heads * group, kv_heads, head_dim), params)
}

/// Prints a line at once, also in tests that pass: where a kernel hangs, the last line says which.
pub fn say(line: &str) {
    let mut out = std::io::stderr().lock();
    // A reader that went away is no reason to stop.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// How cases of one kind fared.
#[derive(Debug, Default)]
pub struct Tally {
    cases: u32,
    wrong: u32,
    max_rel_l2: f64,
    max_lse_error: f64,
}

impl Tally {
    /// Takes a case in; a wrong one is described.
    pub fn add(&mut self, verdict: &Verdict, what: impl fmt::Display) {
        let problem = (!verdict.passes()).then(|| verdict.to_string());
        self.add_errors(verdict.max_rel_l2, verdict.max_lse_error, problem, what);
    }

    /// Takes a case in by its largest errors and what is wrong, if anything.
    pub fn add_errors(
        &mut self,
        rel_l2: f64,
        lse_error: f64,
        problem: Option<String>,
        what: impl fmt::Display,
    ) {
        self.cases += 1;
        self.max_rel_l2 = self.max_rel_l2.max(rel_l2);
        self.max_lse_error = self.max_lse_error.max(lse_error);
        if let Some(problem) = problem {
            self.wrong += 1;
            if self.wrong <= DESCRIBED {
                say(&format!("WRONG: {what}: {problem}"));
            }
        }
    }

    /// Cases that were wrong; says how all fared.
    #[must_use]
    pub fn wrong(&self, name: &str) -> u32 {
        say(&format!(
            "{name:36} {:6} cases {:6} wrong  rel L2 {:8.1e}  LSE error {:8.1e}",
            self.cases, self.wrong, self.max_rel_l2, self.max_lse_error
        ));
        self.wrong
    }
}
