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
/// Requests besides those that show the model every size.
const STEPS: usize = 10_000;
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
    let mut cpu = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let mut soak = Soak::new(model, 1);
    soak.every_size();
    for _ in 0..BETWEEN {
        soak.turn();
    }
    soak.clear();
    let before = Held::by(&soak.model, gpu);
    let (limit, mut largest, mut rows) = (Limits::of(dtype).model, 0.0_f64, 0);
    let mut right = Vec::new();
    for step in 0..STEPS {
        soak.turn();
        if step % BETWEEN != BETWEEN - 1 {
            continue;
        }
        gpu.watchdog.now(&format!("{what}, after {step} requests"));
        soak.answers(|path, logits| {
            let root = cpu.insert_prompt(path, &mut right).unwrap();
            cpu.prune(root).unwrap();
            let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
            largest = largest.max(relative_l2(logits, &right));
            rows += 1;
        });
        assert!(largest <= limit, "{what}: {largest:.1e} after {step}, limit {limit:.1e}");
    }
    soak.clear();
    let (after, happened) = (Held::by(&soak.model, gpu), soak.happened);
    say(&format!(
        "{what}: {STEPS} requests, {happened:?}; {rows} rows within {largest:.1e} of the CPU's; \
         before {before:?}, after {after:?}"
    ));
    let often = happened.accepted > 500 && happened.refused > 50 && happened.cancelled > 200;
    assert!(often && rows > 100, "{happened:?}");
    assert_eq!((after.pages, after.graphs, after.memory), (0, before.graphs, before.memory));
    assert!(after.used <= before.used, "{} bytes more are used", after.used - before.used);
}
