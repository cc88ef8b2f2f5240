//! The model from its file, onto a device.

use std::path::Path;

use anyhow::{Context, Result};
use deft::KvFormat;
use deft::format::Fp8Scale;
use deft::retain::Budget;
use deft_engine::{
    CpuModel, CpuOptions, Gguf, LlamaConfig, Retain, Tokenizer, Weights, chat, safetensors,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Args, DeviceArg, KvArg};
use crate::measure::Timed;
use crate::ranks::Ranks;

/// A model that is ready to run.
pub(crate) struct Loaded {
    /// Its file's.
    pub(crate) name: String,
    pub(crate) config: LlamaConfig,
    pub(crate) tokenizer: Tokenizer,
    /// The chat template's source: a broken one matters only to who talks.
    pub(crate) template: Option<String>,
    pub(crate) model: Box<dyn Timed>,
    /// Where it runs.
    pub(crate) device: String,
    /// Why it does not run on a GPU, if it was to if that could be.
    pub(crate) fallback: Option<String>,
}

/// Reads the GGUF file, or the folder of safetensors, at `path`. None where another process searches with the model.
///
/// # Errors
/// It is no model that runs here, or the device is missing.
pub(crate) fn load(path: &Path, args: &Args) -> Result<Option<Loaded>> {
    let file = path.display();
    let cannot = || format!("cannot take the tokenizer of {file}");
    if path.is_dir() {
        let weights = safetensors::open(path)?;
        let tokenizer = Tokenizer::open(path).with_context(cannot)?;
        let template = chat::template_of(path)?;
        return placed(path, &weights, tokenizer, template, args);
    }
    let gguf = Gguf::open(path)?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).with_context(cannot)?;
    let template = gguf.metadata().text("tokenizer.chat_template")?;
    placed(path, gguf.weights(), tokenizer, template.map(str::to_owned), args)
}

fn placed(
    path: &Path,
    weights: &Weights,
    tokenizer: Tokenizer,
    template: Option<String>,
    args: &Args,
) -> Result<Option<Loaded>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let Some((model, device, fallback)) = on_device(weights, args)? else {
        return Ok(None);
    };
    Ok(Some(Loaded {
        name: name.into_owned(),
        config: weights.config().clone(),
        tokenizer,
        template,
        model,
        device,
        fallback,
    }))
}

/// Passes from one upkeep of a model with a policy to the next.
const UPKEEP: u32 = 16;

type Placed = (Box<dyn Timed>, String, Option<String>);

fn on_device(weights: &Weights, args: &Args) -> Result<Option<Placed>> {
    let (kv, ranks) = (format_of(args.kv), Ranks::of(args)?);
    let retain = args.retain.clone().map(|policy| Retain {
        policy,
        budget: Budget::Tokens(args.retain_rows),
        every: UPKEEP,
    });
    let on_gpu = || on_gpu(weights, (kv, &retain), &ranks);
    match args.device {
        DeviceArg::Cpu => on_cpu(weights, (kv, &retain), &ranks, None),
        DeviceArg::Cuda => on_gpu(),
        DeviceArg::Auto => match on_gpu() {
            // Who asks for several GPUs does not mean the CPU.
            Err(error) if ranks.count() == 1 => {
                on_cpu(weights, (kv, &retain), &ranks, Some(format!("{error:#}")))
            }
            placed => placed,
        },
    }
}

fn format_of(kv: KvArg) -> KvFormat {
    match kv {
        KvArg::Native => KvFormat::Native,
        KvArg::Fp8 => KvFormat::Fp8 { scale: Fp8Scale::Head },
        KvArg::Int4 => KvFormat::Int4 { group: 64 },
        KvArg::Kivi4 => KvFormat::Kivi { bits: 4, group: 32 },
        KvArg::Kivi2 => KvFormat::Kivi { bits: 2, group: 32 },
    }
}

fn on_cpu(
    weights: &Weights,
    (kv, retain): (KvFormat, &Option<Retain>),
    ranks: &Ranks,
    fallback: Option<String>,
) -> Result<Option<Placed>> {
    let bar = bar(weights.config().parameters());
    let (shown, weights) = (bar.clone(), weights.clone());
    let mut options = CpuOptions { kv, retain: retain.clone(), ..CpuOptions::default() };
    // Questions follow one another, and a puzzle is asked twice.
    options.prefix_bytes = options.capacity_bytes;
    let model = ranks.model(move |ranks| {
        let is_first = ranks.rank() == 0;
        let progress = |done, _| {
            if is_first {
                shown.set_position(done);
            }
        };
        Ok(CpuModel::load_rank(&weights, options.clone(), ranks, progress)?)
    })?;
    bar.finish_and_clear();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = match ranks.count() {
        1 => format!("CPU, {threads} threads"),
        ranks => format!("CPU, {threads} threads, {ranks} ranks"),
    };
    Ok(model.map(|model| (model, device, fallback)))
}

#[cfg(feature = "cuda")]
fn on_gpu(
    weights: &Weights,
    (kv, retain): (KvFormat, &Option<Retain>),
    ranks: &Ranks,
) -> Result<Option<Placed>> {
    use std::sync::{Arc, OnceLock};

    use deft::DType;
    use deft::cuda::CudaDevice;
    use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
    use deft_engine::ranks::Shard;

    // How far it is cannot be told.
    let spinner = ProgressBar::new_spinner().with_message("reading weights");
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let (weights, at, name) = (weights.clone(), ranks.clone(), Arc::new(OnceLock::new()));
    let retain = retain.clone();
    let told = name.clone();
    let model = ranks.model(move |ranks| {
        let (rank, count) = (ranks.rank(), ranks.ranks());
        let device = CudaDevice::new(at.gpu(rank))?;
        let mut options = CudaOptions::default();
        (options.kv, options.retain) = (kv, retain.clone());
        let shard = Shard::new(weights.config(), rank, count)?;
        let weights = CudaWeights::read_shard(&device, &weights, DType::F16, shard)?;
        let model = CudaModel::new_rank(&device, weights, options, ranks)?;
        if rank == 0 {
            let name = match model.nccl() {
                None => format!("{}, {}, {}", device.name(), model.dtype(), model.cublas()),
                Some(nccl) => {
                    format!(
                        "{count} x {}, {}, {}, {nccl}",
                        device.name(),
                        model.dtype(),
                        model.cublas()
                    )
                }
            };
            // The first rank is made once.
            let _ = told.set(name);
        }
        Ok(model)
    })?;
    spinner.finish_and_clear();
    let name = name.get().cloned().unwrap_or_default();
    Ok(model.map(|model| (model, name, None)))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Weights, _: (KvFormat, &Option<Retain>), _: &Ranks) -> Result<Option<Placed>> {
    anyhow::bail!("this program was built without GPUs (feature `cuda`)")
}

/// Parameters that were read.
fn bar(parameters: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("    reading weights {wide_bar} {percent} %");
    let style = style.expect("the template is constant and valid");
    ProgressBar::new(parameters).with_style(style)
}
