//! `deft-bench engine`: language models on a GPU, timed end to end.

mod measure;
mod real;
mod report;
mod searches;
mod tasks;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use deft::DType;
use deft_engine::LlamaConfig;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights, instrument};
use deft_tests::watchdog::Watchdog;

use self::report::{HEADER, Row, summary};
use self::tasks::Task;
use crate::device::Device;
use crate::document::Document;
use crate::gpu::Gpu;
use crate::progress::Progress;
use crate::{GpuArgs, GroupingArg, say};

/// Runs whole models on a GPU: times the paper's tasks end to end with synthetic weights.
///
/// With --model it times a real one.
/// Matrix products are cuBLAS's: it is looked for by name, in CUDA toolkits and in Python environments, and
/// --cublas or DEFT_CUBLAS names its file or folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    /// cuBLAS's file (libcublas.so.12, say) or the folder it is in.
    #[arg(long, value_name = "PATH")]
    cublas: Option<PathBuf>,
    /// Time this GGUF file's model instead.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Only so many of the file's layers.
    #[arg(long, requires = "model")]
    layers: Option<u32>,
    /// Type of weights, activations, K and V on the GPU; left out, `f16` with --model, `bf16` with
    /// synthetic weights. `f16` is the closer to f32, and holds up to 65,504.
    #[arg(long, value_enum)]
    dtype: Option<HalfArg>,
    /// A few tasks of one model: under a minute.
    #[arg(long)]
    quick: bool,
    /// Tasks whose model and name contain this, such as `8b few-shot`.
    #[arg(long, value_name = "WORDS")]
    filter: Option<String>,
    /// How queries and KV are grouped; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "flatten,per-query")]
    grouping: Vec<GroupingArg>,
    /// Where to write the results.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// A 16-bit [`DType`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HalfArg {
    F16,
    Bf16,
}

impl From<HalfArg> for DType {
    fn from(argument: HalfArg) -> Self {
        match argument {
            HalfArg::F16 => Self::F16,
            HalfArg::Bf16 => Self::Bf16,
        }
    }
}

/// What all parts need.
struct Engine<'g> {
    gpu: &'g Gpu,
    cublas: Option<PathBuf>,
    watchdog: Watchdog,
}

impl Engine<'_> {
    /// A model with the command line's cuBLAS.
    fn model(&self, weights: CudaWeights, mut options: CudaOptions) -> Result<CudaModel> {
        options.cublas.clone_from(&self.cublas);
        Ok(CudaModel::new(&self.gpu.device, weights, options)?)
    }
}

/// Tokens of a prompt that are run at a time.
const PREFILL_ROWS: u32 = 2048;

/// A model to time.
struct Shape {
    name: &'static str,
    config: LlamaConfig,
    /// Layers whose weights are there: the others use them again.
    distinct_layers: u32,
}

/// The models. Contexts are as long as the longest task needs.
fn shapes(quick: bool) -> Vec<Shape> {
    let of = |name, config: LlamaConfig, distinct_layers| Shape {
        name,
        config: LlamaConfig { context: 40_960, ..config },
        distinct_layers,
    };
    let mut shapes = vec![of("llama3-8b", LlamaConfig::llama3_8b(), 32)];
    if !quick {
        shapes.push(of("qwen3-8b", LlamaConfig::qwen3_8b(), 36));
        shapes.push(of("smollm2-135m", LlamaConfig::smollm2_135m(), 30));
        shapes.push(of("codellama-34b", LlamaConfig::codellama_34b(), 8));
    }
    shapes
}

/// Runs the command; no row can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let device = Device::Gpu(args.gpu.open()?);
    let Device::Gpu(gpu) = &device else {
        unreachable!("it was just opened");
    };
    say(&device.describe());
    let engine = Engine { gpu, cublas: args.cublas.clone(), watchdog: Watchdog::start() };
    let outcome = match &args.model {
        Some(path) => real::run(&engine, path, args.dtype(), args.layers),
        None => time(args, &engine, &device),
    };
    outcome.with_context(|| engine.watchdog.phase())
}

fn time(args: &Args, engine: &Engine<'_>, device: &Device) -> Result<usize> {
    let mut document = Document::new("engine", device, None);
    let all = tasks::all(args.quick)?;
    let mut work = Vec::new();
    for shape in shapes(args.quick) {
        let wanted = |task: &&Task| {
            task.is_for(shape.name) && args.wants(&format!("{} {}", shape.name, task.name))
        };
        let tasks: Vec<Task> = all.iter().filter(wanted).cloned().collect();
        work.push((shape, tasks));
    }
    work.retain(|(_, tasks)| !tasks.is_empty());
    ensure!(!work.is_empty(), "no model and task contain all words of the filter");
    let rows = work.iter().map(|(_, tasks)| tasks.len() * args.grouping.len());
    let progress = Progress::new(rows.sum());
    for (shape, tasks) in &work {
        let outcome = time_model(args, engine, (shape, tasks), &progress, &mut document);
        // Rows so far are worth keeping, whatever happens next.
        document.write(args.json.as_deref())?;
        outcome?;
    }
    progress.say(&summary(&document.rows));
    Ok(0)
}

fn time_model(
    args: &Args,
    engine: &Engine<'_>,
    (shape, tasks): (&Shape, &[Task]),
    progress: &Progress,
    document: &mut Document<Row>,
) -> Result<()> {
    engine.watchdog.now(&format!("{}: weights", shape.name));
    progress.doing(&format!("{}: weights", shape.name));
    let begin = Instant::now();
    let pages = tasks.iter().map(Task::pages).max().unwrap_or(1);
    let mut model = open(engine, shape, args.dtype(), pages)?;
    let memory = model.memory();
    progress.say(&format!(
        "{}: synthetic weights in {}, {} distinct layers of {}, {:.1} GB, and {:.1} GB of random pages, ready in {:.1} s; {}",
        shape.name,
        model.dtype(),
        shape.distinct_layers,
        shape.config.layers,
        memory.weights as f64 / 1e9,
        memory.pages as f64 / 1e9,
        begin.elapsed().as_secs_f64(),
        model.cublas(),
    ));
    if document.kernels.is_empty() {
        document.kernels.push(model.cublas());
    }
    progress.say(HEADER);
    for task in tasks {
        for &grouping in &args.grouping {
            let what = format!("{} {} {}", shape.name, task.name, grouping.name());
            progress.doing(&what);
            if !task.is_grouped() && grouping != GroupingArg::Flatten {
                progress.step();
                continue;
            }
            model.set_grouping(grouping.into());
            let timing = measure::time(&mut model, task, &engine.watchdog).context(what)?;
            let sizes = (model.memory().total(), model.weights().pass_bytes());
            let of = (shape, model.dtype());
            let row = Row::new(of, task, grouping.name(), &timing, sizes);
            progress.say(&row.line());
            progress.step();
            document.rows.push(row);
        }
    }
    Ok(())
}

fn open(engine: &Engine<'_>, shape: &Shape, dtype: DType, pages: u32) -> Result<CudaModel> {
    let config = shape.config.clone();
    let token_bytes = 4 * u64::from(config.kv_width()) * u64::from(config.layers);
    let mut options = CudaOptions::default();
    options.kv_bytes = 64 * token_bytes * u64::from(pages);
    options.prefill_rows = PREFILL_ROWS;
    let device = &engine.gpu.device;
    let weights = CudaWeights::random(device, config, dtype, shape.distinct_layers, 1)?;
    let mut model = engine.model(weights, options)?;
    instrument::randomize_pages(&mut model, 2)?;
    Ok(model)
}

impl Args {
    /// The type to run in.
    fn dtype(&self) -> DType {
        match self.dtype {
            Some(dtype) => dtype.into(),
            None if self.model.is_some() => DType::F16,
            None => DType::Bf16,
        }
    }

    fn wants(&self, name: &str) -> bool {
        let words = self.filter.as_deref().unwrap_or_default();
        words.split_whitespace().all(|word| name.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn files_run_in_f16_and_synthetic_weights_in_bf16() {
        let dtype = |line: &str| {
            let words = std::iter::once("engine").chain(line.split_whitespace());
            Line::try_parse_from(words).unwrap().args.dtype()
        };
        assert_eq!(dtype(""), DType::Bf16);
        assert_eq!(dtype("--model some.gguf"), DType::F16);
        assert_eq!(dtype("--model some.gguf --dtype bf16"), DType::Bf16);
        assert_eq!(dtype("--dtype f16"), DType::F16);
    }
}
