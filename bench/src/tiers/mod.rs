//! `deft-bench tiers`: memory that comes and goes, and prompts that come back, on a GPU.

mod elastic;
mod restore;

use std::path::PathBuf;

use anyhow::{Context, Result};
use deft::DType;
use deft_engine::LlamaConfig;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_tests::watchdog::Watchdog;

use crate::gpu::Gpu;
use crate::{GpuArgs, LibraryArgs, say};

/// Times an elastic store beside a fixed one, and prompts that are restored from pinned memory and from files.
///
/// The model is of Llama-3-8B's shape with random weights. Decoding steps are timed with both stores, growth and shrinking
/// with the memory that the driver says is free. A prompt is computed, loaded, and restored by both at once, at the speed
/// of pinned memory, of a file, and of inputs of given rates.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// SmolLM2-135M's shape in the place of Llama-3-8B's.
    #[arg(long)]
    small: bool,
    /// Tokens of the prompt that is restored.
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
    /// Decoding steps that are timed.
    #[arg(long, default_value_t = 512)]
    steps: usize,
    /// Where a file is written.
    #[arg(long, value_name = "FOLDER", default_value = "/tmp")]
    folder: PathBuf,
}

/// What the parts need.
struct Setting<'a> {
    args: &'a Args,
    gpu: &'a Gpu,
    watchdog: &'a Watchdog,
}

impl Setting<'_> {
    fn config(&self) -> LlamaConfig {
        let config = match self.args.small {
            true => LlamaConfig::smollm2_135m(),
            false => LlamaConfig::llama3_8b(),
        };
        LlamaConfig { context: 1 << 17, ..config }
    }

    fn model(&self, options: impl FnOnce(&mut CudaOptions)) -> Result<CudaModel> {
        let (device, config) = (&self.gpu.device, self.config());
        let layers = config.layers;
        let weights = CudaWeights::random(device, config, DType::Bf16, layers, 1)?;
        let mut chosen = CudaOptions::default();
        chosen.cublas.clone_from(&self.args.libraries.cublas);
        options(&mut chosen);
        Ok(CudaModel::new(device, weights, chosen)?)
    }

    /// MiB of the device that the driver says are in use.
    fn used(&self) -> Result<u64> {
        let (free, total) = self.gpu.device.memory_info()?;
        Ok((total - free) as u64 >> 20)
    }
}

/// Runs the command; what is restored is compared with what was computed.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let gpu = args.gpu.open()?;
    let watchdog = Watchdog::start();
    let setting = Setting { args, gpu: &gpu, watchdog: &watchdog };
    say(&gpu.device.describe());
    elastic::run(&setting).with_context(|| watchdog.phase())?;
    restore::run(&setting).with_context(|| watchdog.phase())
}
