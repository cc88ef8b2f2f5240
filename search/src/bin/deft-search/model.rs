//! The model from its file, onto a device.

use std::path::Path;

use anyhow::{Context, Result};
use deft::KvFormat;
use deft::format::Fp8Scale;
use deft_engine::{CpuModel, CpuOptions, Gguf, LlamaConfig, Tokenizer, Weights, chat, safetensors};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{DeviceArg, KvArg};
use crate::measure::Timed;

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

/// Reads the GGUF file, or the folder of safetensors, at `path`.
///
/// # Errors
/// It is no model that runs here, or the device is missing.
pub(crate) fn load(path: &Path, device: DeviceArg, kv: KvArg) -> Result<Loaded> {
    let file = path.display();
    let cannot = || format!("cannot take the tokenizer of {file}");
    if path.is_dir() {
        let weights = safetensors::open(path)?;
        let tokenizer = Tokenizer::open(path).with_context(cannot)?;
        let template = chat::template_of(path)?;
        return placed(path, &weights, tokenizer, template, (device, kv));
    }
    let gguf = Gguf::open(path)?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).with_context(cannot)?;
    let template = gguf.metadata().text("tokenizer.chat_template")?;
    placed(path, gguf.weights(), tokenizer, template.map(str::to_owned), (device, kv))
}

fn placed(
    path: &Path,
    weights: &Weights,
    tokenizer: Tokenizer,
    template: Option<String>,
    (device, kv): (DeviceArg, KvArg),
) -> Result<Loaded> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let (model, device, fallback) = on_device(weights, device, kv)?;
    Ok(Loaded {
        name: name.into_owned(),
        config: weights.config().clone(),
        tokenizer,
        template,
        model,
        device,
        fallback,
    })
}

type Placed = (Box<dyn Timed>, String, Option<String>);

fn on_device(weights: &Weights, device: DeviceArg, kv: KvArg) -> Result<Placed> {
    let kv = format_of(kv);
    let on_gpu = || match kv {
        KvFormat::Native => on_gpu(weights),
        format => anyhow::bail!("KV format {format} is not available on CUDA yet"),
    };
    match device {
        DeviceArg::Cpu => on_cpu(weights, kv, None),
        DeviceArg::Cuda => on_gpu(),
        DeviceArg::Auto => match on_gpu() {
            Ok(placed) => Ok(placed),
            Err(error) => on_cpu(weights, kv, Some(format!("{error:#}"))),
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

fn on_cpu(weights: &Weights, kv: KvFormat, fallback: Option<String>) -> Result<Placed> {
    let bar = bar(weights.config().parameters());
    let progress = |done, _| bar.set_position(done);
    let mut options = CpuOptions { kv, ..CpuOptions::default() };
    // Questions follow one another, and a puzzle is asked twice.
    options.prefix_bytes = options.capacity_bytes;
    let model = CpuModel::load(weights, options, progress)?;
    bar.finish_and_clear();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = format!("CPU, {threads} threads");
    Ok((Box::new(model), device, fallback))
}

#[cfg(feature = "cuda")]
fn on_gpu(weights: &Weights) -> Result<Placed> {
    use deft::DType;
    use deft::cuda::CudaDevice;
    use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};

    let device = CudaDevice::new(0)?;
    // How far it is cannot be told.
    let spinner = ProgressBar::new_spinner().with_message("reading weights");
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let weights = CudaWeights::read(&device, weights, DType::F16)?;
    spinner.finish_and_clear();
    let model = CudaModel::new(&device, weights, CudaOptions::default())?;
    let name = format!("{}, {}, {}", device.name(), model.dtype(), model.cublas());
    Ok((Box::new(model), name, None))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Weights) -> Result<Placed> {
    anyhow::bail!("this program was built without GPUs (feature `cuda`)")
}

/// Parameters that were read.
fn bar(parameters: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("    reading weights {wide_bar} {percent} %");
    let style = style.expect("the template is constant and valid");
    ProgressBar::new(parameters).with_style(style)
}
