//! Is the model on the GPU right, and if not, where does it go wrong?

use deft::cache::padded_head_dim;
use deft::{DType, NodeKey};
use deft_engine::cuda::instrument::{self, Probe, Stage};
use deft_engine::cuda::{Choice, CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, LlamaConfig, TreeModel, Turn, Variant, Weights};
use deft_tests::gpu::{Gpu, say};
use deft_tests::oracle::relative_l2;
use deft_tests::watchdog::Watchdog;

use super::plain::{Plain, States, is_half, stages};
use super::select;
use super::walk::{argmax, tokens, walk};

/// What rounding and the order of sums leave, relative to a row's length.
pub(crate) struct Limits {
    /// Of what is rounded to the model's type.
    half: f64,
    attention: f64,
    /// Of sums of exact products.
    float: f64,
    /// Logits of the model against those of the f32 one.
    pub(crate) model: f64,
}

impl Limits {
    const BF16: Self = Self { half: 4e-3, attention: 1e-2, float: 1e-4, model: 0.05 };

    /// f16 has three bits more than bf16.
    pub(crate) fn of(dtype: DType) -> Self {
        let finer = if dtype == DType::F16 { 8.0 } else { 1.0 };
        Self {
            half: Self::BF16.half / finer,
            attention: Self::BF16.attention / finer,
            model: Self::BF16.model / finer,
            ..Self::BF16
        }
    }
}

/// Small shapes: SmolLM2's heads, Llama 3's with a head of its own, what Qwen3, Qwen2 and SmolLM3 do otherwise, and every
/// head dimension that is padded.
pub(crate) fn shapes() -> [(&'static str, LlamaConfig); 8] {
    let small = LlamaConfig {
        layers: 3,
        hidden: 576,
        ffn: 1536,
        vocabulary: 1000,
        context: 1024,
        ..LlamaConfig::smollm2_135m()
    };
    let llama = LlamaConfig {
        layers: 2,
        hidden: 512,
        ffn: 1408,
        q_heads: 8,
        kv_heads: 2,
        vocabulary: 1003,
        context: 1024,
        ..LlamaConfig::llama3_8b()
    };
    let normed =
        LlamaConfig { variant: Variant { qk_norm: true, ..Variant::LLAMA }, ..llama.clone() };
    let biased = LlamaConfig {
        variant: Variant {
            qkv_bias: true,
            turns: vec![Turn::Model, Turn::Not, Turn::Model],
            ..Variant::LLAMA
        },
        ..small.clone()
    };
    let padded = LlamaConfig { head_dim: 96, ..normed.clone() };
    let padded_biased = LlamaConfig { head_dim: 80, ..biased.clone() };
    let widest = LlamaConfig { head_dim: 192, ..llama.clone() };
    let padded_most = LlamaConfig { head_dim: 112, ..small.clone() };
    [
        ("9 heads of 64 over 3", small),
        ("8 heads of 128 over 2", llama),
        ("8 normed heads of 128 over 2", normed),
        ("9 heads of 64 over 3 with biases, one layer that does not turn", biased),
        ("8 normed heads of 96 over 2", padded),
        ("9 heads of 80 over 3 with biases, one layer that does not turn", padded_biased),
        ("8 heads of 192 over 2", widest),
        ("9 heads of 112 over 3", padded_most),
    ]
}

#[test]
fn models_of_every_head_shape_agree_with_f64_and_with_the_cpu() {
    let mut wrong = 0;
    for gpu in Gpu::each() {
        for dtype in [DType::Bf16, DType::F16] {
            for (name, config) in shapes() {
                wrong += check_model(&gpu, name, config, dtype);
            }
        }
    }
    assert_eq!(wrong, 0, "comparisons failed");
}

fn check_model(gpu: &Gpu, name: &str, config: LlamaConfig, dtype: DType) -> usize {
    let weights = Weights::synthetic(config, 5).unwrap();
    let mut model = open(gpu, &weights, dtype);
    let arch = gpu.arch();
    say(&format!("{arch}, {name} in {dtype}; {}", model.cublas()));
    let mut wrong = check_stages(&mut model, &weights, &gpu.watchdog);
    wrong += check_walk(&mut model, &weights, &gpu.watchdog);
    wrong += check_decode(&mut model, &gpu.watchdog);
    wrong += select::check(&mut model, &gpu.watchdog);
    let left = model.forest().pool().live();
    assert_eq!(left, 0, "pages are in use after all trees are gone");
    wrong
}

fn open(gpu: &Gpu, weights: &Weights, dtype: DType) -> CudaModel {
    gpu.watchdog.now("bringing weights to the GPU");
    let mut options = CudaOptions::default();
    options.kv_bytes = 256 << 20;
    options.max_rows = 64;
    // Parts of a prompt that end within pages and at their ends.
    options.prefill_rows = 64;
    let weights = CudaWeights::read(&gpu.device, weights, dtype).unwrap();
    CudaModel::new(&gpu.device, weights, options).unwrap()
}

/// Every stage of one pass, each from what the GPU itself left before it.
fn check_stages(gpu: &mut CudaModel, weights: &Weights, watchdog: &Watchdog) -> usize {
    watchdog.now("running a prompt of 37 tokens, stage by stage");
    let path = tokens(1, 37, weights.config().vocabulary);
    let probes = instrument::probe(gpu, &path).unwrap();
    watchdog.now("comparing its stages with f64");
    let faults = faults(&Plain::new(weights, gpu.dtype()), &path, &probes);
    for fault in &faults {
        say(&format!("  WRONG: {fault}"));
    }
    if faults.is_empty() {
        say(&format!("  {} stages of a pass agree with f64", probes.len()));
    }
    usize::from(!faults.is_empty())
}

/// The stages that are wrong, in order: the first is where to look.
fn faults(plain: &Plain, path: &[u32], probes: &[Probe]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut before = States::default();
    let (expected, limits) = (stages(plain.layers()), Limits::of(plain.dtype()));
    if probes.len() != expected.len() {
        faults.push(format!("{} stages, not {}", probes.len(), expected.len()));
    }
    for (probe, (layer, stage)) in probes.iter().zip(expected) {
        let name = format!("layer {layer}, {stage:?}");
        if (probe.layer, probe.stage) != (layer, stage) {
            faults.push(format!("{name}: the GPU was at {:?} then", probe.stage));
            return faults;
        }
        let right = plain.stage(layer, stage, path, &before);
        let got = unpadded(stage, &probe.values, plain.head_dim());
        let limit = match stage {
            Stage::Attended => limits.attention,
            _ if is_half(stage) => limits.half,
            _ => limits.float,
        };
        let width = right.len() / path.len();
        let rows = right.chunks(width).zip(got.chunks(width));
        let errors = rows.map(|(right, got)| relative_l2(got, right));
        let bad = errors.enumerate().find(|&(_, error)| error > limit);
        if let Some((row, error)) = bad {
            let (got, right) = (&got[row * width..], &right[row * width..]);
            faults.push(format!(
                "{name}: row {row} is off by {error:.2e} (limit {limit:.0e}); it begins {:.5?}, not {:.5?}",
                &got[..3],
                &right[..3]
            ));
        }
        before.set(stage, got.iter().map(|&x| f64::from(x)).collect());
    }
    faults
}

/// What a stage left without the zeros that follow each half of a padded head.
fn unpadded(stage: Stage, values: &[f32], head_dim: u32) -> Vec<f32> {
    let [own, padded] = [head_dim, padded_head_dim(head_dim)].map(|dim| dim as usize / 2);
    if own == padded || !matches!(stage, Stage::Projected | Stage::Queries | Stage::Attended) {
        return values.to_vec();
    }
    values.chunks_exact(padded).flat_map(|half| &half[..own]).copied().collect()
}

/// Trees that grow, branch, are drafted on and pruned, on the GPU and on the CPU.
fn check_walk(gpu: &mut CudaModel, weights: &Weights, watchdog: &Watchdog) -> usize {
    let mut cpu = CpuModel::load(weights, CpuOptions::default(), |_, _| {}).unwrap();
    watchdog.now("the walk on the CPU");
    let right = walk(&mut cpu, |_| {});
    let got = walk(gpu, |what| watchdog.now(what));
    let (limit, mut largest) = (Limits::of(gpu.dtype()).model, 0.0_f64);
    for ((what, right), (_, got)) in right.iter().zip(&got) {
        let vocabulary = cpu.vocabulary();
        let rows = right.chunks(vocabulary).zip(got.chunks(vocabulary));
        for (row, (right, got)) in rows.enumerate() {
            let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
            let error = relative_l2(got, &right);
            if error > limit {
                say(&format!(
                    "  WRONG: {what}, row {row}: logits are off by {error:.2e} (limit {limit:.0e})"
                ));
                return 1;
            }
            largest = largest.max(error);
        }
    }
    let graphs = gpu.graphs();
    say(&format!(
        "  {} passes over a changing tree: logits within {largest:.1e} of the CPU's f32 ones, {graphs} graphs",
        right.len()
    ));
    0
}

/// Tokens that stay on the device against the same steps by the host.
fn check_decode(gpu: &mut CudaModel, watchdog: &Watchdog) -> usize {
    const STEPS: usize = 300;
    let vocabulary = gpu.vocabulary();
    let prompt = tokens(7, 50, vocabulary as u32);
    let mut logits = Vec::new();
    let first = tokens(8, 5, vocabulary as u32);
    watchdog.now("greedy steps by the host");
    let root = gpu.insert_prompt(&prompt, &mut logits).unwrap();
    // Not in the tree's order, so that rows have another than leaves.
    let order = |mut leaves: Vec<NodeKey>| {
        leaves.swap(1, 4);
        leaves
    };
    let leaves = order(gpu.fork(root, 5).unwrap());
    let mut right = vec![Vec::new(); 5];
    let mut next = first.clone();
    for _ in 0..STEPS {
        gpu.step(&leaves, &next, &mut logits).unwrap();
        next = logits.chunks(vocabulary).map(argmax).collect();
        right.iter_mut().zip(&next).for_each(|(row, &token)| row.push(token));
    }
    gpu.prune(root).unwrap();
    watchdog.now("greedy steps by the device");
    let root = gpu.insert_prompt(&prompt, &mut logits).unwrap();
    let leaves = order(gpu.fork(root, 5).unwrap());
    let mut decode = gpu.decode(&leaves, &first, Choice::GREEDY).unwrap();
    for _ in 0..STEPS {
        decode.step().unwrap();
    }
    let got = decode.tokens().unwrap().to_vec();
    let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
    decode.ranking(&mut ids, &mut log_probs).unwrap();
    gpu.prune(root).unwrap();
    let differing = got.iter().zip(&right).position(|(got, right)| got != right);
    if let Some(leaf) = differing {
        let at = got[leaf].iter().zip(&right[leaf]).position(|(a, b)| a != b);
        say(&format!("  WRONG: leaf {leaf} chose another token at step {at:?} on the device"));
        return 1;
    }
    let last: Vec<u32> = right.iter().filter_map(|row| row.last().copied()).collect();
    if ids != last || !log_probs.iter().all(|&x| x <= 0.0 && x.is_finite()) {
        say(&format!("  WRONG: the last ranking is {ids:?} with {log_probs:?}, not {last:?}"));
        return 1;
    }
    say(&format!(
        "  {STEPS} greedy steps of 5 leaves choose the same on the device as by the host"
    ));
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];

    /// With all that a GPU does otherwise than Llama.
    fn variant() -> Variant {
        Variant {
            qkv_bias: true,
            qk_norm: true,
            turns: vec![Turn::Model, Turn::Not],
            ..Variant::LLAMA
        }
    }

    fn tiny(dtype: DType) -> (Plain, Vec<u32>, Vec<Probe>) {
        let config = LlamaConfig {
            layers: 2,
            hidden: 40,
            ffn: 56,
            q_heads: 6,
            kv_heads: 2,
            vocabulary: 97,
            context: 100,
            ..LlamaConfig::smollm2_135m()
        };
        let plain = Plain::new(&Weights::synthetic(config, 3).unwrap(), dtype);
        let path = tokens(1, 9, 97);
        let probes = plain.run(&path);
        (plain, path, probes)
    }

    #[test]
    fn a_right_pass_has_no_fault() {
        for dtype in DTYPES {
            let (plain, path, probes) = tiny(dtype);
            assert_eq!(faults(&plain, &path, &probes), Vec::<String>::new());
        }
    }

    #[test]
    fn a_pass_in_bf16_is_at_fault_where_f16_was_asked_for() {
        let (_, path, probes) = tiny(DType::Bf16);
        let (plain, ..) = tiny(DType::F16);
        let found = faults(&plain, &path, &probes);
        assert!(found[0].starts_with("layer 0, "), "{found:?}");
    }

    #[test]
    fn the_first_stage_that_is_wrong_is_named_first() {
        let (plain, path, probes) = tiny(DType::F16);
        for at in 0..probes.len() {
            for poison in [1.5, f32::INFINITY, f32::NAN] {
                let mut wrong = probes.clone();
                wrong[at].values[7] += poison;
                let found = faults(&plain, &path, &wrong);
                let name = format!("layer {}, {:?}: row 0 ", probes[at].layer, probes[at].stage);
                assert!(found[0].starts_with(&name), "{name}: {found:?}");
            }
        }
    }

    #[test]
    fn the_stages_end_in_the_cpu_model_s_logits() {
        for variant in [Variant::LLAMA, variant()] {
            let config = LlamaConfig {
                layers: 2,
                hidden: 64,
                ffn: 96,
                vocabulary: 97,
                context: 100,
                variant,
                ..LlamaConfig::smollm2_135m()
            };
            let weights = Weights::synthetic(config, 3).unwrap();
            let path = tokens(1, 9, 97);
            let mut cpu = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
            let mut logits = Vec::new();
            cpu.insert_prompt(&path, &mut logits).unwrap();
            let right: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            for (dtype, limit) in [(DType::Bf16, 0.03), (DType::F16, 0.03 / 8.0)] {
                let probes = Plain::new(&weights, dtype).run(&path);
                let last = &probes.last().unwrap().values[8 * 97..];
                let error = relative_l2(last, &right);
                assert!(error < limit, "{dtype}: {error}");
            }
        }
    }
}
