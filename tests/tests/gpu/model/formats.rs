//! Models that keep forked nodes in a KV format on the GPU, against the CPU's with the same.

use deft::{DType, KvFormat};
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, Weights};
use deft_tests::gpu::{Gpu, say};
use deft_tests::oracle::relative_l2;

use super::stages::{Limits, shapes};
use super::walk::walk;

#[test]
fn forked_nodes_in_a_format_answer_on_the_gpu_as_on_the_cpu() {
    for gpu in Gpu::each() {
        let [(name, config), ..] = shapes();
        let weights = Weights::synthetic(config, 5).unwrap();
        let vocabulary = weights.config().vocabulary;
        let on_gpu = |kv: KvFormat| {
            let mut options = CudaOptions::default();
            (options.kv_bytes, options.max_rows, options.kv) = (256 << 20, 64, kv);
            let on_gpu = CudaWeights::read(&gpu.device, &weights, DType::F16).unwrap();
            let mut model = CudaModel::new(&gpu.device, on_gpu, options).unwrap();
            let answers = walk(&mut model, |what| gpu.watchdog.now(what));
            assert!(model.graphs() > 0, "nothing was captured");
            answers
        };
        let native = on_gpu(KvFormat::Native);
        for format in ["fp8", "int4-g64", "kivi4"] {
            let what = format!("{}, {name}, {format}", gpu.arch());
            gpu.watchdog.now(&what);
            let kv: KvFormat = format.parse().unwrap();
            let options = CpuOptions { kv, ..CpuOptions::default() };
            let mut cpu = CpuModel::load(&weights, options, |_, _| {}).unwrap();
            let right = walk(&mut cpu, |_| {});
            let got = on_gpu(kv);
            let largest = farthest(&got, &right, vocabulary);
            let changed = farthest(&got, &native, vocabulary);
            say(&format!("{what}: logits within {largest:.1e}; {changed:.1e} from native ones"));
            // Rounded to 16 bits a number near the edge gets another code.
            let limit = Limits::of(DType::Bf16).model;
            assert!(largest <= limit, "{what}: {largest:.1e}, limit {limit:.1e}");
            assert!(changed > 1e-4, "{what}: nothing was kept in the format");
        }
    }
}

/// How far answers are from the right ones where they are farthest, relative to a row's length.
pub(super) fn farthest(
    got: &[(String, Vec<f32>)],
    right: &[(String, Vec<f32>)],
    vocabulary: u32,
) -> f64 {
    assert_eq!(got.len(), right.len());
    let mut largest = 0.0_f64;
    for ((_, got), (_, right)) in got.iter().zip(right) {
        assert_eq!(got.len(), right.len());
        let rows = right.chunks(vocabulary as usize).zip(got.chunks(vocabulary as usize));
        for (right, got) in rows {
            let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
            largest = largest.max(relative_l2(got, &right));
        }
    }
    largest
}
