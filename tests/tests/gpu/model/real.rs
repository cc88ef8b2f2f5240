//! A real model on the GPU, against the CPU's and against recorded tokens: the GGUF file that `DEFT_MODEL` names.
//!
//! It runs in f16, the default for files; `DEFT_DTYPE=bf16` takes bf16, which the limits below call wrong where a model
//! is deep. `DEFT_LAYERS` takes so many of its layers only, on GPU and CPU alike.

use std::path::Path;

use deft::{DType, NodeKey};
use deft_engine::cuda::{Choice, CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, Gguf, TreeModel};
use deft_tests::gpu::{Gpu, say, setting};
use deft_tests::oracle::relative_l2;
use deft_tests::watchdog::Watchdog;
use serde_json::Value;

use super::walk::argmax;

/// What transformers made of SmolLM2: prompts, and 64 greedy tokens of each.
const RECORDED: &str = include_str!("../../../../engine/tests/data/smollm2.json");
/// Where two logits are closer than this, relative to a row's largest, rounding may choose between them.
const TIE: f64 = 0.02;
/// Logits of the 16-bit model against those of the f32 one, relative to a row's length.
const LIMIT: f64 = 0.03;

/// A prompt, and the tokens that transformers chose after it.
struct Recorded {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

fn recorded() -> Vec<Recorded> {
    let all: Value = serde_json::from_str(RECORDED).unwrap();
    let ids = |of: &Value| -> Vec<u32> {
        let ids = of.as_array().expect("a list of ids").iter();
        ids.map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let runs = all["runs"].as_array().expect("a list of runs").iter();
    let runs = runs.map(|run| Recorded { prompt: ids(&run["ids"]), tokens: ids(&run["tokens"]) });
    runs.collect()
}

#[test]
fn a_real_model_has_the_cpus_logits_and_no_other_choice_but_at_near_ties() {
    let Ok(path) = std::env::var("DEFT_MODEL") else {
        say("skipped: DEFT_MODEL names no GGUF file");
        return;
    };
    let gpus = Gpu::each();
    let Some(gpu) = gpus.first() else {
        return;
    };
    let gguf = Gguf::open(Path::new(&path)).unwrap();
    let whole = gguf.weights().config().layers;
    let layers = setting("DEFT_LAYERS", whole.into()) as u32;
    let gguf = gguf.with_layers(layers).unwrap();
    let weights = gguf.weights();
    let config = weights.config();
    say(&format!(
        "{path}: {layers} of {whole} layers, {:.0} M parameters; f32 on the CPU",
        config.parameters() as f64 / 1e6
    ));
    let runs = recorded();
    let largest = runs.iter().flat_map(|run| &run.prompt).max();
    assert!(
        largest.is_some_and(|&id| id < config.vocabulary),
        "the prompts are SmolLM2's, and this model's vocabulary of {} is smaller",
        config.vocabulary
    );
    gpu.watchdog.now("the CPU's model");
    let mut cpu = CpuModel::load(weights, CpuOptions::default(), |_, _| {}).unwrap();
    let right = greedy_by_host(&mut cpu, &runs, &gpu.watchdog);
    let dtype = match std::env::var("DEFT_DTYPE").as_deref() {
        Err(_) | Ok("f16") => DType::F16,
        Ok("bf16") => DType::Bf16,
        Ok(other) => panic!("DEFT_DTYPE is `{other}`, neither f16 nor bf16"),
    };
    gpu.watchdog.now("bringing weights to the GPU");
    let mut options = CudaOptions::default();
    options.kv_bytes = 1 << 30;
    let weights = CudaWeights::read(&gpu.device, weights, dtype).unwrap();
    let mut model = CudaModel::new(&gpu.device, weights, options).unwrap();
    say(&format!("  {dtype}; {}", model.cublas()));
    let wrong = compare_logits(&mut model, &runs, &right, &gpu.watchdog);
    compare_tokens(&mut model, &runs, &right, layers == whole, &gpu.watchdog);
    assert_eq!(wrong, 0, "comparisons failed");
}

/// Greedy tokens of all runs side by side, and the logits they were chosen by.
struct Greedy {
    /// `[runs][steps]`.
    tokens: Vec<Vec<u32>>,
    /// `[steps][runs][vocabulary]`.
    logits: Vec<Vec<f32>>,
}

/// Prompts, each a tree; the logits after all of them.
fn insert(model: &mut dyn TreeModel, runs: &[Recorded]) -> (Vec<NodeKey>, Vec<f32>) {
    let (mut leaves, mut rows, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for run in runs {
        leaves.push(model.insert_prompt(&run.prompt, &mut logits).unwrap());
        rows.extend_from_slice(&logits);
    }
    (leaves, rows)
}

fn greedy_by_host(cpu: &mut CpuModel, runs: &[Recorded], watchdog: &Watchdog) -> Greedy {
    let vocabulary = cpu.vocabulary();
    let (leaves, mut logits) = insert(cpu, runs);
    let mut greedy = Greedy { tokens: vec![Vec::new(); runs.len()], logits: Vec::new() };
    for step in 0..runs[0].tokens.len() {
        watchdog.now(&format!("greedy step {step} of the CPU"));
        let next: Vec<u32> = logits.chunks(vocabulary).map(argmax).collect();
        greedy.logits.push(logits.clone());
        let rows = greedy.tokens.iter_mut().zip(&next);
        rows.for_each(|(tokens, &token)| tokens.push(token));
        cpu.step(&leaves, &next, &mut logits).unwrap();
    }
    greedy
}

/// The GPU's logits after the CPU's tokens.
fn compare_logits(
    gpu: &mut CudaModel,
    runs: &[Recorded],
    right: &Greedy,
    watchdog: &Watchdog,
) -> usize {
    let vocabulary = gpu.vocabulary();
    watchdog.now("prompts on the GPU");
    let (leaves, mut logits) = insert(gpu, runs);
    let (mut errors, mut others, mut not_ties) = (Vec::new(), 0, 0);
    for (step, expected) in right.logits.iter().enumerate() {
        watchdog.now(&format!("step {step} on the GPU"));
        let rows = logits.chunks(vocabulary).zip(expected.chunks(vocabulary));
        for (got, expected) in rows {
            let wide: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
            errors.push(relative_l2(got, &wide));
            let (chosen, best) = (argmax(got) as usize, argmax(expected) as usize);
            let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            others += usize::from(chosen != best);
            let apart = f64::from((expected[best] - expected[chosen]) / scale);
            not_ties += usize::from(apart > TIE);
        }
        let next: Vec<u32> = right.tokens.iter().map(|tokens| tokens[step]).collect();
        gpu.step(&leaves, &next, &mut logits).unwrap();
    }
    for leaf in leaves {
        gpu.prune(leaf).unwrap();
    }
    errors.sort_by(f64::total_cmp);
    let (median, largest) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    say(&format!(
        "  logits after the same {} tokens: rel L2 against the CPU median {median:.2e}, largest {largest:.2e}; \
         {others} rows have another largest, {not_ties} of them by more than a near tie",
        errors.len()
    ));
    let wrong = not_ties > 0 || largest > LIMIT;
    if wrong {
        say(&format!(
            "  WRONG: the limit is {LIMIT}, and no row's choice may differ by more than {TIE} of its largest"
        ));
    }
    usize::from(wrong)
}

/// Free-running greedy tokens of the device against the CPU's, and those against what was recorded.
fn compare_tokens(
    gpu: &mut CudaModel,
    runs: &[Recorded],
    right: &Greedy,
    whole: bool,
    watchdog: &Watchdog,
) {
    watchdog.now("greedy tokens on the device");
    let vocabulary = gpu.vocabulary();
    let (leaves, logits) = insert(gpu, runs);
    let first: Vec<u32> = logits.chunks(vocabulary).map(argmax).collect();
    let mut decode = gpu.decode(&leaves, &first, Choice::GREEDY).unwrap();
    for _ in 1..runs[0].tokens.len() {
        decode.step().unwrap();
    }
    let chosen = decode.tokens().unwrap().to_vec();
    for leaf in leaves {
        gpu.prune(leaf).unwrap();
    }
    for (at, run) in runs.iter().enumerate() {
        let got: Vec<u32> = std::iter::once(first[at]).chain(chosen[at].iter().copied()).collect();
        let mut line =
            format!("  prompt {at}: GPU and CPU agree on {}", agreement(&got, &right.tokens[at]));
        if whole {
            line +=
                &format!("; CPU and transformers on {}", agreement(&right.tokens[at], &run.tokens));
        }
        say(&line);
    }
}

fn agreement(got: &[u32], right: &[u32]) -> String {
    let differing = got.iter().zip(right).position(|(got, right)| got != right);
    match differing {
        None => format!("all {} tokens", right.len()),
        Some(at) => format!("the first {at} of {} tokens", right.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_runs_are_five_prompts_of_64_tokens() {
        let runs = recorded();
        assert_eq!(runs.len(), 5);
        assert!(runs.iter().all(|run| run.tokens.len() == 64 && !run.prompt.is_empty()));
    }

    #[test]
    fn agreement_counts_to_the_first_other_token() {
        assert_eq!(agreement(&[1, 2, 3], &[1, 2, 3]), "all 3 tokens");
        assert_eq!(agreement(&[1, 5, 3], &[1, 2, 3]), "the first 1 of 3 tokens");
    }
}
