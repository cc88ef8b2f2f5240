//! The model from its file, onto a device.

use std::path::Path;

use anyhow::{Context, Result};
use deft_engine::{ChatTemplate, CpuModel, CpuOptions, Gguf, LlamaConfig, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::DeviceArg;
use crate::measure::Timed;

/// A model that is ready to run.
pub(crate) struct Loaded {
    /// Its file's.
    pub(crate) name: String,
    pub(crate) config: LlamaConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) model: Box<dyn Timed>,
    /// Where it runs.
    pub(crate) device: String,
    /// Why it does not run on a GPU, if it was to if that could be.
    pub(crate) fallback: Option<String>,
}

/// Reads the file at `path`.
///
/// # Errors
/// It is no model that runs here, or the device is missing.
pub(crate) fn load(path: &Path, device: DeviceArg) -> Result<Loaded> {
    let file = path.display();
    let gguf = Gguf::open(path)?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata());
    let tokenizer = tokenizer.with_context(|| format!("cannot take the tokenizer of {file}"))?;
    let template = gguf.metadata().text("tokenizer.chat_template")?;
    let template = template.map(ChatTemplate::new).transpose()?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let (model, device, fallback) = on_device(&gguf, device)?;
    Ok(Loaded {
        name: name.into_owned(),
        config: gguf.weights().config().clone(),
        tokenizer,
        template,
        model,
        device,
        fallback,
    })
}

type Placed = (Box<dyn Timed>, String, Option<String>);

fn on_device(gguf: &Gguf, device: DeviceArg) -> Result<Placed> {
    match device {
        DeviceArg::Cpu => on_cpu(gguf, None),
        DeviceArg::Cuda => on_gpu(gguf),
        DeviceArg::Auto => match on_gpu(gguf) {
            Ok(placed) => Ok(placed),
            Err(error) => on_cpu(gguf, Some(format!("{error:#}"))),
        },
    }
}

fn on_cpu(gguf: &Gguf, fallback: Option<String>) -> Result<Placed> {
    let bar = bar(gguf.weights().config().parameters());
    let progress = |done, _| bar.set_position(done);
    let model = CpuModel::load(gguf.weights(), CpuOptions::default(), progress)?;
    bar.finish_and_clear();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = format!("CPU, {threads} threads");
    Ok((Box::new(model), device, fallback))
}

#[cfg(feature = "cuda")]
fn on_gpu(gguf: &Gguf) -> Result<Placed> {
    use deft::DType;
    use deft::cuda::CudaDevice;
    use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};

    let device = CudaDevice::new(0)?;
    let weights = CudaWeights::read(&device, gguf.weights(), DType::F16)?;
    let model = CudaModel::new(&device, weights, CudaOptions::default())?;
    let name = format!("{}, {}, {}", device.name(), model.dtype(), model.cublas());
    Ok((Box::new(model), name, None))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Gguf) -> Result<Placed> {
    anyhow::bail!("this program was built without GPUs (feature `cuda`)")
}

/// Parameters that were read.
fn bar(parameters: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("    reading weights {wide_bar} {percent} %");
    let style = style.expect("the template is constant and valid");
    ProgressBar::new(parameters).with_style(style)
}
