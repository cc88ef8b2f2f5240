//! `deft-bench engine`: language models on a GPU, timed end to end.

mod measure;
mod ranks;
mod real;
mod report;
mod searches;
mod tasks;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use deft::DType;
use deft::cuda::CudaDevice;
use deft_engine::LlamaConfig;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights, instrument};
use deft_engine::ranks::{Communicator as _, Memory, Shard};
use deft_tests::watchdog::Watchdog;

use self::report::{HEADER, Row, summary};
pub(crate) use self::searches::NoText;
use self::tasks::Task;
use crate::device::Device;
use crate::document::Document;
use crate::progress::Progress;
use crate::{GpuArgs, GroupingArg, LibraryArgs, say};

/// Runs whole models on a GPU: times the paper's tasks end to end with synthetic weights.
///
/// With --model it times a real one.
/// Matrix products are cuBLAS's: it is looked for by name, in CUDA toolkits and in Python environments, and
/// --cublas or DEFT_CUBLAS names its file or folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// Run the model on so many GPUs, from --gpu on: a rank each, which share its heads. NCCL is looked for as cuBLAS is, and
    /// DEFT_NCCL names its file or folder.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: u32,
    /// Time this GGUF file's model instead.
    #[arg(long, value_name = "FILE", conflicts_with = "gpus")]
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
    /// Tasks whose model, name and tokens of the prompt contain all of this, such as `8b few-shot 5000`; several may be
    /// given, separated by commas. llama3-70b is timed where it is named.
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    filter: Vec<String>,
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
struct Engine<'a> {
    args: &'a Args,
    /// The first one, if there are several.
    device: CudaDevice,
    watchdog: Watchdog,
}

impl Engine<'_> {
    /// A rank's model with the command line's cuBLAS.
    fn model(
        &self,
        device: &CudaDevice,
        weights: CudaWeights,
        mut options: CudaOptions,
        ranks: Memory,
    ) -> Result<CudaModel> {
        options.cublas.clone_from(&self.args.libraries.cublas);
        Ok(CudaModel::new_rank(device, weights, options, Box::new(ranks))?)
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

/// The models, with the largest where it is named. Contexts are as long as the longest task needs.
fn shapes(quick: bool, (filter, gpus): (&[String], u32)) -> Vec<Shape> {
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
    if filter.iter().any(|words| words.contains("70b")) {
        // As many layers as memory has room for.
        let layers = [16, 32, 64, 80][gpus.clamp(1, 4) as usize - 1];
        shapes.push(of("llama3-70b", LlamaConfig::llama3_70b(), layers));
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
    let engine = Engine { args, device: gpu.device.clone(), watchdog: Watchdog::start() };
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
    for shape in shapes(args.quick, (&args.filter, args.gpus)) {
        let wanted = |task: &&Task| {
            let name = format!("{} {} {}", shape.name, task.name, task.prompt_tokens);
            task.is_for(shape.name) && args.wants(&name)
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
    let told = Mutex::new((progress, document));
    engine.watchdog.now(&format!("{}: weights", shape.name));
    progress.doing(&format!("{}: weights", shape.name));
    ranks::on_all(engine, args.gpus, |device, ranks| {
        // One rank speaks for all.
        let lead = ranks.rank() == 0;
        let mut told = lead.then(|| told.lock().unwrap_or_else(PoisonError::into_inner));
        let begin = Instant::now();
        let pages = tasks.iter().map(Task::pages).max().unwrap_or(1);
        let mut model = open(engine, shape, (device, ranks), pages)?;
        if let Some(told) = &mut told {
            let (progress, document) = &mut **told;
            let ready = begin.elapsed().as_secs_f64();
            progress.say(&format!("{}, ready in {ready:.1} s", describe(shape, &model)));
            if document.kernels.is_empty() {
                document.kernels.extend([Some(model.cublas()), model.nccl()].into_iter().flatten());
            }
            progress.say(HEADER);
        }
        for task in tasks {
            for &grouping in &args.grouping {
                let what = format!("{} {} {}", shape.name, task.name, grouping.name());
                let is_timed = task.is_grouped() || grouping == GroupingArg::Flatten;
                if let (Some(told), true) = (&told, is_timed) {
                    told.0.doing(&what);
                }
                let row = match is_timed {
                    true => {
                        Some(time_task(engine, shape, (task, grouping), &mut model).context(what)?)
                    }
                    false => None,
                };
                if let Some(told) = &mut told {
                    let (progress, document) = &mut **told;
                    progress.step();
                    if let Some(row) = row {
                        progress.say(&row.line());
                        document.rows.push(row);
                    }
                }
            }
        }
        Ok(())
    })
}

fn describe(shape: &Shape, model: &CudaModel) -> String {
    let memory = model.memory();
    let libraries = [Some(model.cublas()), model.nccl()].into_iter().flatten();
    format!(
        "{}: synthetic weights in {}, {} distinct layers of {}, {:.1} GB, and {:.1} GB of random pages on each of {} GPUs; {}",
        shape.name,
        model.dtype(),
        shape.distinct_layers,
        shape.config.layers,
        memory.weights as f64 / 1e9,
        memory.pages as f64 / 1e9,
        model.weights().shard().ranks(),
        libraries.collect::<Vec<_>>().join(", "),
    )
}

fn time_task(
    engine: &Engine<'_>,
    shape: &Shape,
    (task, grouping): (&Task, GroupingArg),
    model: &mut CudaModel,
) -> Result<Row> {
    model.set_grouping(grouping.into());
    let timing = measure::time(model, task, &engine.watchdog)?;
    Ok(Row::new((shape, model), task, grouping.name(), &timing))
}

fn open(
    engine: &Engine<'_>,
    shape: &Shape,
    (device, ranks): (&CudaDevice, Memory),
    pages: u32,
) -> Result<CudaModel> {
    let shard = Shard::new(&shape.config, ranks.rank(), ranks.ranks())?;
    let most_heads = u64::from(shape.config.kv_heads.div_ceil(ranks.ranks()));
    let token_bytes = 4 * most_heads * u64::from(shape.config.head_dim * shape.config.layers);
    let mut options = CudaOptions::default();
    options.kv_bytes = 64 * token_bytes * u64::from(pages);
    options.prefill_rows = PREFILL_ROWS;
    let (dtype, seed) = (engine.args.dtype(), u64::from(ranks.rank()) << 32);
    let weights = CudaWeights::random_shard(device, shard, dtype, shape.distinct_layers, seed + 1)?;
    let mut model = engine.model(device, weights, options, ranks)?;
    instrument::randomize_pages(&mut model, seed + 2)?;
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
        let has = |words: &String| words.split_whitespace().all(|word| name.contains(word));
        self.filter.is_empty() || self.filter.iter().any(has)
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
