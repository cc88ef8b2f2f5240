//! `--model`: how fast a real model decodes on the GPU.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use deft::DType;
use deft_engine::cuda::{Choice, CudaModel, CudaOptions, CudaWeights};
use deft_engine::ranks::Memory;
use deft_engine::{Gguf, TreeModel};

use super::{Engine, Watchdog};
use crate::say;

/// Tokens of the prompt; which they are does not matter.
const PROMPT: u32 = 32;

/// Times the model.
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
        "{}: {} of {whole} layers, {:.0} M parameters; {dtype}",
        path.display(),
        config.layers,
        config.parameters() as f64 / 1e6
    ));
    engine.watchdog.now("bringing weights to the GPU");
    let mut options = CudaOptions::default();
    options.kv_bytes = 1 << 30;
    let weights = CudaWeights::read(&engine.device, weights, dtype)?;
    let mut gpu = engine.model(&engine.device, weights, options, Memory::alone())?;
    say(&format!("  {}", gpu.cublas()));
    speed(&mut gpu, &engine.watchdog)?;
    Ok(0)
}

fn speed(gpu: &mut CudaModel, watchdog: &Watchdog) -> Result<()> {
    const STEPS: usize = 200;
    let prompt: Vec<u32> = (0..PROMPT).map(|at| at % gpu.vocabulary() as u32).collect();
    for width in [1, 5, 50] {
        watchdog.now(&format!("speed of {width} leaves"));
        let mut logits = Vec::new();
        let root = gpu.insert_prompt(&prompt, &mut logits)?;
        let leaves = gpu.fork(root, width)?;
        let mut decode = gpu.decode(&leaves, &vec![0; width], Choice::GREEDY)?;
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
    say(&format!("  device memory: {:.2} GB", gpu.memory().total() as f64 / 1e9));
    Ok(())
}
