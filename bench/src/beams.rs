//! `deft-bench beams`: beam searches from few beams to thousands, step by step.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use deft::DType;
use deft_engine::LlamaConfig;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_search::{Answer, BeamSearch, Ending, Event, TreeSearch};

use crate::engine::NoText;
use crate::report::STREAM_GB_PER_S;
use crate::{GpuArgs, LibraryArgs, say};

/// Steps before those that are timed.
const WARMUP: usize = 4;
/// What tensor cores do, in TFLOP/s, as the bounds of the other tables have it.
const TFLOP_PER_S: f64 = 660.0;

/// Times beam search with synthetic weights: a step on the wall clock, all of it.
///
/// Random weights make beams that coalesce otherwise than a language model's: how many ancestors they have is told beside
/// the times.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// Models, by their shapes.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "qwen3-0.6b,qwen3-1.7b")]
    models: Vec<Model>,
    /// Beams.
    #[arg(long, value_delimiter = ',', default_value = "8,32,512,5000")]
    widths: Vec<usize>,
    /// Tokens of each beam.
    #[arg(long, default_value_t = 128)]
    steps: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 1024)]
    prompt: u32,
    /// Device memory for keys and values, in GiB.
    #[arg(long, default_value_t = 24)]
    kv_gib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Model {
    #[value(name = "qwen3-0.6b")]
    Qwen06,
    #[value(name = "qwen3-1.7b")]
    Qwen17,
}

impl Model {
    fn config(self) -> LlamaConfig {
        match self {
            Self::Qwen06 => LlamaConfig::qwen3_0_6b(),
            Self::Qwen17 => LlamaConfig::qwen3_1_7b(),
        }
    }
}

/// Runs the command; no row can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let gpu = args.gpu.open()?;
    say(&gpu.device.describe());
    say(
        "model        beams  step ms  last ms bound ms   KV GB pages moved mem GB  ancestors 1, 4, 16, 64 tokens back",
    );
    for &model in &args.models {
        for &width in &args.widths {
            let row = time(args, &gpu.device, (model, width));
            row.with_context(|| format!("{model:?}, {width} beams"))?;
        }
    }
    Ok(0)
}

fn time(
    args: &Args,
    device: &deft::cuda::CudaDevice,
    (model, width): (Model, usize),
) -> Result<()> {
    ensure!(args.steps > 2 * WARMUP, "--steps is {}; it must be more than 8", args.steps);
    let config = model.config();
    let mut options = CudaOptions::default();
    options.cublas.clone_from(&args.libraries.cublas);
    options.kv_bytes = args.kv_gib << 30;
    options.max_rows = u32::try_from(width)?.max(64);
    options.prefill_rows = 512;
    let layers = config.layers;
    let weights = CudaWeights::random(device, config.clone(), DType::Bf16, layers, 1)?;
    let mut model_on_gpu = CudaModel::new(device, weights, options)?;
    let prompt: Vec<u32> = (0..args.prompt).map(|at| at * 7 % config.vocabulary).collect();
    let mut steps = Vec::new();
    let mut clock = |event: &Event<'_>| {
        if matches!(event, Event::Stepped { .. }) {
            steps.push(Instant::now());
        }
    };
    // The last token is chosen, not run.
    let ending = Ending::at(1 + args.steps);
    let mut beam = BeamSearch { width, length_penalty: 1.0, ending };
    let search = TreeSearch::new(&mut model_on_gpu, &NoText).observer(&mut clock);
    let outcome = search.run(&prompt, &mut beam)?;
    let mean = |steps: &[Instant]| {
        let wall = steps[steps.len() - 1] - steps[0];
        wall.as_secs_f64() * 1e3 / (steps.len() - 1) as f64
    };
    ensure!(steps.len() == args.steps, "{} steps of {}", steps.len(), args.steps);
    let bound = bound_ms(&config, width, (args.prompt as usize, args.steps), &model_on_gpu);
    let stats = outcome.stats;
    let ancestors = [1, 4, 16, 64].map(|back| ancestors(&outcome.answers, back).to_string());
    say(&format!(
        "{:12} {width:5} {:8.3} {:8.3} {bound:8.3} {:7.3} {:5} {:5} {:6.1}  {}",
        model.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned()),
        mean(&steps[WARMUP - 1..]),
        mean(&steps[steps.len() - 1 - steps.len() / 8..]),
        stats.traffic.read as f64 / (stats.steps + 1) as f64 / 1e9,
        stats.peak_pages,
        stats.moved,
        model_on_gpu.memory().total() as f64 / 1e9,
        ancestors.join(", "),
    ));
    Ok(())
}

/// What a step takes at least: weights are read or multiplied, logits are written and read, the prompt and half of the
/// beams' tokens are attended to.
fn bound_ms(
    config: &LlamaConfig,
    width: usize,
    (prompt, steps): (usize, usize),
    model: &CudaModel,
) -> f64 {
    let [rows, context] = [width, prompt + steps / 2].map(|count| count as f64);
    let weights = model.weights().pass_bytes() as f64;
    let ms_of_bytes = |bytes: f64| bytes / STREAM_GB_PER_S / 1e6;
    let ms_of_flops = |flops: f64| flops / TFLOP_PER_S / 1e9;
    // Two bytes and two operations a weight and row.
    let products = ms_of_bytes(weights).max(ms_of_flops(weights * rows));
    let logits = ms_of_bytes(2.0 * 4.0 * rows * f64::from(config.vocabulary));
    let queries = f64::from(config.layers * config.q_width());
    let attention = ms_of_flops(4.0 * rows * context * queries);
    let pages = f64::from(4 * config.layers * config.kv_width()) * prompt as f64;
    products + logits + attention.max(ms_of_bytes(pages))
}

/// How many different tokens answers go on from that have so many more.
fn ancestors(answers: &[Answer], back: usize) -> usize {
    let paths = answers.iter().filter_map(|answer| {
        let length = answer.tokens.len().checked_sub(back)?;
        Some(&answer.tokens[..length])
    });
    paths.collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft_search::Finish;

    #[test]
    fn ancestors_are_counted_at_the_tokens_that_answers_share() {
        let of = |tokens: &[u32]| Answer {
            text: String::new(),
            tokens: tokens.to_vec(),
            log_prob: 0.0,
            score: 0.0,
            solved: false,
            finish: Finish::Length,
        };
        let answers = [of(&[1, 2, 3]), of(&[1, 2, 4]), of(&[1, 5, 3])];
        assert_eq!([0, 1, 2, 3, 4].map(|back| ancestors(&answers, back)), [3, 2, 1, 1, 0]);
    }
}
