//! `--model`: a real model on the GPU, against the CPU's and against recorded tokens.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use deft::{DType, NodeKey};
use deft_engine::cuda::{Choice, CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, Gguf, TreeModel, Weights};
use serde_json::Value;

use super::walk::{argmax, relative_error};
use super::{Engine, Watchdog};
use crate::say;

/// What transformers made of SmolLM2: prompts, and 64 greedy tokens of each.
const RECORDED: &str = include_str!("../../../engine/tests/data/smollm2.json");
/// Where two logits are closer than this, relative to a row's largest, rounding may choose between them.
const TIE: f64 = 0.02;
/// Logits of the 16-bit model against those of the f32 one, relative to a row's length.
const LIMIT: f64 = 0.03;

/// A prompt, and the tokens that transformers chose after it.
struct Recorded {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

fn recorded() -> Result<Vec<Recorded>> {
    let all: Value = serde_json::from_str(RECORDED)?;
    let ids = |of: &Value| -> Option<Vec<u32>> {
        let ids = of.as_array()?.iter();
        ids.map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    let runs = all["runs"].as_array().context("there are no runs")?.iter();
    runs.map(|run| {
        Ok(Recorded {
            prompt: ids(&run["ids"]).context("a prompt is no list of ids")?,
            tokens: ids(&run["tokens"]).context("tokens are no list of ids")?,
        })
    })
    .collect()
}

/// Compares and times the model; how many comparisons failed.
pub(super) fn run(
    engine: &Engine<'_>,
    path: &Path,
    dtype: DType,
    layers: Option<u32>,
) -> Result<usize> {
    let gguf = Gguf::open(path)?;
    let whole = gguf.weights().config().layers;
    let gguf = match layers {
        Some(layers) => gguf.with_layers(layers)?,
        None => gguf,
    };
    let weights = gguf.weights();
    let config = weights.config();
    say(&format!(
        "{}: {} of {whole} layers, {:.0} M parameters; {dtype} on the GPU, f32 on the CPU",
        path.display(),
        config.layers,
        config.parameters() as f64 / 1e6
    ));
    let runs = recorded()?;
    let largest = runs.iter().flat_map(|run| &run.prompt).max();
    ensure!(
        largest.is_some_and(|&id| id < config.vocabulary),
        "the prompts are SmolLM2's, and this model's vocabulary of {} is smaller",
        config.vocabulary
    );
    let mut gpu = open(engine, weights, dtype)?;
    say(&format!("  {}", gpu.cublas()));
    engine.watchdog.now("the CPU's model");
    let mut cpu = CpuModel::load(weights, CpuOptions::default(), |_, _| {})?;
    let right = greedy_by_host(&mut cpu, &runs, &engine.watchdog)?;
    let mut wrong = compare_logits(&mut gpu, &runs, &right, &engine.watchdog)?;
    wrong += compare_tokens(&mut gpu, &runs, &right, layers.is_none(), &engine.watchdog)?;
    speed(&mut gpu, &runs, &engine.watchdog)?;
    Ok(wrong)
}

fn open(engine: &Engine<'_>, weights: &Weights, dtype: DType) -> Result<CudaModel> {
    engine.watchdog.now("bringing weights to the GPU");
    let mut options = CudaOptions::default();
    options.kv_bytes = 1 << 30;
    let weights = CudaWeights::read(&engine.gpu.device, weights, dtype)?;
    engine.model(weights, options)
}

/// Greedy tokens of all runs side by side, and the logits they were chosen by.
struct Greedy {
    /// `[runs][steps]`.
    tokens: Vec<Vec<u32>>,
    /// `[steps][runs][vocabulary]`.
    logits: Vec<Vec<f32>>,
}

/// Prompts, each a tree; the logits after all of them.
fn insert(model: &mut dyn TreeModel, runs: &[Recorded]) -> Result<(Vec<NodeKey>, Vec<f32>)> {
    let (mut leaves, mut rows, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for run in runs {
        leaves.push(model.insert_prompt(&run.prompt, &mut logits)?);
        rows.extend_from_slice(&logits);
    }
    Ok((leaves, rows))
}

fn greedy_by_host(cpu: &mut CpuModel, runs: &[Recorded], watchdog: &Watchdog) -> Result<Greedy> {
    let vocabulary = cpu.vocabulary();
    let (leaves, mut logits) = insert(cpu, runs)?;
    let mut greedy = Greedy {
        tokens: vec![Vec::new(); runs.len()],
        logits: Vec::new(),
    };
    for step in 0..runs[0].tokens.len() {
        watchdog.now(&format!("greedy step {step} of the CPU"));
        let next: Vec<u32> = logits.chunks(vocabulary).map(argmax).collect();
        greedy.logits.push(logits.clone());
        let rows = greedy.tokens.iter_mut().zip(&next);
        rows.for_each(|(tokens, &token)| tokens.push(token));
        cpu.step(&leaves, &next, &mut logits)?;
    }
    Ok(greedy)
}

/// The GPU's logits after the CPU's tokens.
fn compare_logits(
    gpu: &mut CudaModel,
    runs: &[Recorded],
    right: &Greedy,
    watchdog: &Watchdog,
) -> Result<usize> {
    let vocabulary = gpu.vocabulary();
    watchdog.now("prompts on the GPU");
    let (leaves, mut logits) = insert(gpu, runs)?;
    let (mut errors, mut others, mut not_ties) = (Vec::new(), 0, 0);
    for (step, expected) in right.logits.iter().enumerate() {
        watchdog.now(&format!("step {step} on the GPU"));
        let rows = logits.chunks(vocabulary).zip(expected.chunks(vocabulary));
        for (got, expected) in rows {
            let wide: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
            errors.push(relative_error(got, &wide));
            let (chosen, best) = (argmax(got) as usize, argmax(expected) as usize);
            let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            others += usize::from(chosen != best);
            let apart = f64::from((expected[best] - expected[chosen]) / scale);
            not_ties += usize::from(apart > TIE);
        }
        let next: Vec<u32> = right.tokens.iter().map(|tokens| tokens[step]).collect();
        gpu.step(&leaves, &next, &mut logits)?;
    }
    for leaf in leaves {
        gpu.prune(leaf)?;
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
    Ok(usize::from(wrong))
}

/// Free-running greedy tokens of the device against the CPU's, and those against what was recorded.
fn compare_tokens(
    gpu: &mut CudaModel,
    runs: &[Recorded],
    right: &Greedy,
    whole: bool,
    watchdog: &Watchdog,
) -> Result<usize> {
    watchdog.now("greedy tokens on the device");
    let vocabulary = gpu.vocabulary();
    let (leaves, logits) = insert(gpu, runs)?;
    let first: Vec<u32> = logits.chunks(vocabulary).map(argmax).collect();
    let mut decode = gpu.decode(&leaves, &first, Choice::GREEDY)?;
    for _ in 1..runs[0].tokens.len() {
        decode.step()?;
    }
    let chosen = decode.tokens()?.to_vec();
    for leaf in leaves {
        gpu.prune(leaf)?;
    }
    for (at, run) in runs.iter().enumerate() {
        let got: Vec<u32> = std::iter::once(first[at])
            .chain(chosen[at].iter().copied())
            .collect();
        let mut line = format!(
            "  prompt {at}: GPU and CPU agree on {}",
            agreement(&got, &right.tokens[at])
        );
        if whole {
            line += &format!(
                "; CPU and transformers on {}",
                agreement(&right.tokens[at], &run.tokens)
            );
        }
        say(&line);
    }
    Ok(0)
}

fn agreement(got: &[u32], right: &[u32]) -> String {
    let differing = got.iter().zip(right).position(|(got, right)| got != right);
    match differing {
        None => format!("all {} tokens", right.len()),
        Some(at) => format!("the first {at} of {} tokens", right.len()),
    }
}

fn speed(gpu: &mut CudaModel, runs: &[Recorded], watchdog: &Watchdog) -> Result<()> {
    const STEPS: usize = 200;
    for width in [1, 5, 50] {
        watchdog.now(&format!("speed of {width} leaves"));
        let mut logits = Vec::new();
        let root = gpu.insert_prompt(&runs[0].prompt, &mut logits)?;
        let leaves = gpu.fork(root, width)?;
        let mut decode = gpu.decode(&leaves, &vec![argmax(&logits); width], Choice::GREEDY)?;
        for _ in 0..5 {
            decode.step()?;
        }
        decode.synchronize()?;
        let begin = Instant::now();
        for _ in 0..STEPS {
            decode.step()?;
        }
        decode.synchronize()?;
        let step_ms = begin.elapsed().as_secs_f64() * 1e3 / STEPS as f64;
        say(&format!(
            "  {width} leaves: {step_ms:.3} ms a step, {:.0} tokens/s",
            width as f64 / step_ms * 1e3
        ));
        gpu.prune(root)?;
    }
    say(&format!(
        "  device memory: {:.2} GB",
        gpu.memory().total() as f64 / 1e9
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_runs_are_five_prompts_of_64_tokens() {
        let runs = recorded().unwrap();
        assert_eq!(runs.len(), 5);
        assert!(
            runs.iter()
                .all(|run| run.tokens.len() == 64 && !run.prompt.is_empty())
        );
    }

    #[test]
    fn agreement_counts_to_the_first_other_token() {
        assert_eq!(agreement(&[1, 2, 3], &[1, 2, 3]), "all 3 tokens");
        assert_eq!(agreement(&[1, 5, 3], &[1, 2, 3]), "the first 1 of 3 tokens");
    }
}
