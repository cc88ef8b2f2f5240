//! Ten thousand random requests on the GPU's model: nothing is left of them, and what is answered is the CPU's.

#[path = "../../../../engine/tests/common/soak.rs"]
mod requests;

use deft::cache::{CacheShape, DType, padded_head_dim};
use deft_engine::cuda::{CudaMemory, CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, LlamaConfig, TreeModel, Weights};
use deft_tests::gpu::{Gpu, say};
use deft_tests::oracle::relative_l2;

use self::requests::Soak;
use super::stages::Limits;

/// Pages of the cache: so few that they run out now and then.
const PAGES: u32 = 12;
/// Requests, half of them the other half once more.
const STEPS: usize = 10_000;
const SEED: u64 = 1;
/// Requests between looks at logits.
const BETWEEN: usize = 100;

/// Two layers with a padded head.
fn small() -> LlamaConfig {
    LlamaConfig {
        layers: 2,
        hidden: 192,
        ffn: 256,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 80,
        vocabulary: 503,
        context: 300,
        ..LlamaConfig::llama3_8b()
    }
}

/// What may not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    pages: u32,
    graphs: usize,
    memory: CudaMemory,
    /// Bytes that the driver has given out, to this program and others.
    used: usize,
}

impl Held {
    fn by(model: &CudaModel, gpu: &Gpu) -> Self {
        model.synchronize().unwrap();
        let (free, total) = gpu.device.memory_info().unwrap();
        Self {
            pages: model.forest().pool().live(),
            graphs: model.graphs(),
            memory: model.memory(),
            used: total - free,
        }
    }
}

#[test]
fn ten_thousand_requests_leave_no_page_graph_or_byte_behind() {
    for gpu in Gpu::each() {
        for dtype in [DType::F16, DType::Bf16] {
            soak(&gpu, dtype);
        }
    }
}

fn soak(gpu: &Gpu, dtype: DType) {
    let what = format!("{}, {dtype}", gpu.arch());
    gpu.watchdog.now(&what);
    let weights = Weights::synthetic(small(), 11).unwrap();
    let on_gpu = CudaWeights::read(&gpu.device, &weights, dtype).unwrap();
    let LlamaConfig { layers, kv_heads, head_dim, .. } = small();
    let head_dim = padded_head_dim(head_dim);
    let shape = CacheShape { layers, kv_heads, head_dim, dtype, pages: PAGES };
    let mut options = CudaOptions::default();
    options.kv_bytes = shape.page_bytes() * u64::from(PAGES);
    options.max_rows = 16;
    options.prefill_rows = 64;
    let model = CudaModel::new(&gpu.device, on_gpu, options).unwrap();
    assert_eq!(model.forest().pool().free(), PAGES);
    let cpu = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let mut soak = Soak::new(model, SEED);
    soak.every_size();
    for _ in 0..BETWEEN {
        soak.turn();
    }
    soak.clear();
    let early = Held::by(&soak.model, gpu);
    let mut compared = Compared { cpu, right: Vec::new(), rows: 0, largest: 0.0 };
    let [first, second] = [1, 2].map(|round| {
        soak.restart(SEED);
        for step in 0..STEPS / 2 {
            soak.turn();
            if step % BETWEEN == BETWEEN - 1 {
                gpu.watchdog.now(&format!("{what}, round {round} after {step} requests"));
                soak.answers(|path, logits| compared.look(path, logits));
            }
        }
        soak.clear();
        Held::by(&soak.model, gpu)
    });
    let Compared { rows, largest, .. } = compared;
    let happened = soak.happened;
    say(&format!(
        "{what}: {STEPS} requests, {happened:?}; {rows} rows within {largest:.1e} of the CPU's; \
         early {early:?}, after {first:?}, again {second:?}"
    ));
    let limit = Limits::of(dtype).model;
    assert!(largest <= limit, "{what}: {largest:.1e}, limit {limit:.1e}");
    let often = happened.accepted > 500 && happened.refused > 50 && happened.cancelled > 100;
    assert!(often && rows > 100, "{happened:?}");
    // The room for plans is that of the largest so far; the rest is there early.
    let but_plans =
        |held: Held| Held { memory: CudaMemory { plans: 0, ..held.memory }, used: 0, ..held };
    assert_eq!(but_plans(first), but_plans(early));
    assert_eq!(second, first, "the same requests again took more");
}

/// Logits against the CPU's of the same path.
struct Compared {
    cpu: CpuModel,
    right: Vec<f32>,
    rows: usize,
    largest: f64,
}

impl Compared {
    fn look(&mut self, path: &[u32], logits: &[f32]) {
        let root = self.cpu.insert_prompt(path, &mut self.right).unwrap();
        self.cpu.prune(root).unwrap();
        let right: Vec<f64> = self.right.iter().map(|&x| f64::from(x)).collect();
        self.largest = self.largest.max(relative_l2(logits, &right));
        self.rows += 1;
    }
}
