//! The model that is asked.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use deft::DType;
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_engine::{CpuModel, CpuOptions, Gguf, Tokenizer, TreeModel};
use deft_search::TextCodec;

use crate::device::Device;

/// A model and its tokenizer.
pub(crate) struct Opened {
    /// The file's name and what it runs in.
    pub(crate) name: String,
    /// The file's chat template.
    pub(crate) template: Option<String>,
    pub(crate) model: Box<dyn TreeModel>,
    pub(crate) tokenizer: Tokenizer,
}

impl Opened {
    /// Reads a GGUF file and brings it to `device`.
    pub(crate) fn read(path: &Path, device: &Device, cublas: Option<&Path>) -> Result<Self> {
        ensure!(
            path.exists(),
            "there is no {}; `cargo xtask model` fetches the default model, --model names another file",
            path.display()
        );
        let gguf = Gguf::open(path)?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let template = gguf.metadata().text("tokenizer.chat_template")?.map(str::to_owned);
        let weights = gguf.weights();
        let (model, precision): (Box<dyn TreeModel>, _) = match device {
            Device::Cpu => (
                Box::new(CpuModel::load(weights, CpuOptions::default(), |_, _| {})?),
                DType::F32.name(),
            ),
            Device::Gpu(gpu) => {
                let mut options = CudaOptions::default();
                options.cublas = cublas.map(Path::to_owned);
                let weights = CudaWeights::read(&gpu.device, weights, DType::F16)?;
                let model = CudaModel::new(&gpu.device, weights, options)?;
                let dtype = model.dtype();
                (Box::new(model), dtype.name())
            }
        };
        let file = path.file_name().context("--model is no file")?;
        let name = format!("{} in {precision}", file.to_string_lossy());
        Ok(Self { name, template, model, tokenizer })
    }

    pub(super) fn parts(&mut self) -> (&mut dyn TreeModel, &dyn TextCodec) {
        (&mut *self.model, &self.tokenizer)
    }
}
