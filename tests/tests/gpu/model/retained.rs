//! Models with a policy of retention on the GPU, against the CPU's with the same.

use deft::DType;
use deft::retain::Budget;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, Retain, Weights};
use deft_tests::gpu::{Gpu, say};

use super::formats::farthest;
use super::stages::{Limits, shapes};
use super::walk::walk;

#[test]
fn a_policy_drops_on_the_gpu_what_it_drops_on_the_cpu() {
    for gpu in Gpu::each() {
        let [(name, config), ..] = shapes();
        let weights = Weights::synthetic(config, 5).unwrap();
        for dtype in [DType::Bf16, DType::F16] {
            // Which tokens have the largest sums is not the same in 16 bits: near the edge others stay.
            for (policy, times) in [("sinks:4,20", 1.0), ("h2o:8", 8.0)] {
                let what = format!("{}, {name} in {dtype}, {policy}", gpu.arch());
                gpu.watchdog.now(&what);
                let policy = policy.parse().unwrap();
                let retain = Some(Retain { policy, budget: Budget::Tokens(60), every: 1 });
                let options = CpuOptions { retain: retain.clone(), ..CpuOptions::default() };
                let mut cpu = CpuModel::load(&weights, options, |_, _| {}).unwrap();
                let mut options = CudaOptions::default();
                options.kv_bytes = 256 << 20;
                options.max_rows = 64;
                options.retain = retain;
                let on_gpu = CudaWeights::read(&gpu.device, &weights, dtype).unwrap();
                let mut model = CudaModel::new(&gpu.device, on_gpu, options).unwrap();
                let right = walk(&mut cpu, |_| {});
                let got = walk(&mut model, |what| gpu.watchdog.now(what));
                let largest = farthest(&got, &right, weights.config().vocabulary);
                let [right, got] = [cpu.maintained().unwrap(), model.maintained().unwrap()];
                say(&format!(
                    "{what}: logits within {largest:.1e}; {} nodes, {} of {} rows left, the CPU's {} of {}; {} graphs",
                    got.nodes,
                    got.rows_after,
                    got.rows_before,
                    right.rows_after,
                    right.rows_before,
                    model.graphs()
                ));
                assert!(right.nodes > 0 && right.rows_after < right.rows_before, "{right:?}");
                assert_eq!(got, right, "{what}");
                let limit = times * Limits::of(dtype).model;
                assert!(largest <= limit, "{what}: {largest:.1e}, limit {limit:.1e}");
                assert!(model.graphs() > 0, "{what}: nothing was captured");
            }
        }
    }
}
