//! How a model is made, and what memory it takes.

use std::path::PathBuf;

use deft::KvFormat;
use deft::cache::{CacheShape, DType, PagePool, Store};
use deft::plan::Grouping;
use deft::retain::Policy;

use super::CudaModelError;
use crate::{LlamaConfig, Retain};

/// Most rows of a pass that an option may ask for.
const MAX_ROWS: u32 = 8192;

/// How a [`CudaModel`](super::CudaModel) is made.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub struct CudaOptions {
    /// Bytes of device memory for KV pages; of the rank with the most KV heads, if there are several.
    pub kv_bytes: u64,
    /// With `Some(initial)` pages get their memory as they are taken, `kv_bytes` at most, and so many bytes at once:
    /// [`Store::Elastic`](deft::cache::Store::Elastic).
    pub kv_initial: Option<u64>,
    /// Most bytes of pages that prompts of the past hold, for later ones that begin alike: see
    /// [`CacheBuilder::prefix_bytes`](deft::CacheBuilder::prefix_bytes). 0 keeps none.
    pub prefix_bytes: u64,
    /// Most tokens of a step or a draft, 8,192 at most. Logits of all of them are kept, in f32: 3.1 GB of 5,000 rows of a
    /// vocabulary of 151,936.
    pub max_rows: u32,
    /// Tokens of a prompt that are run at a time.
    pub prefill_rows: u32,
    /// How queries and KV are grouped; prompts are always run with [`Grouping::Flatten`].
    pub grouping: Grouping,
    /// How K and V of forked nodes are stored; thin keys are on CPUs only.
    pub kv: KvFormat,
    /// Which tokens are kept; `None` keeps all. On one rank, with native K and V.
    pub retain: Option<Retain>,
    /// cuBLAS's file or folder; left out, the environment variable [`CUBLAS_VARIABLE`](super::CUBLAS_VARIABLE) and
    /// the usual places are looked at.
    pub cublas: Option<PathBuf>,
    /// NCCL's file or folder, for several ranks; left out, as for cuBLAS, with
    /// [`NCCL_VARIABLE`](super::NCCL_VARIABLE).
    pub nccl: Option<PathBuf>,
}

impl Default for CudaOptions {
    /// 4 GiB of pages at once, nothing kept of prompts of the past, 256 rows, 512 tokens of a prompt at a time, `Flatten`.
    fn default() -> Self {
        Self {
            kv_bytes: 4 << 30,
            kv_initial: None,
            prefix_bytes: 0,
            max_rows: 256,
            prefill_rows: 512,
            grouping: Grouping::Flatten,
            kv: KvFormat::Native,
            retain: None,
            cublas: None,
            nccl: None,
        }
    }
}

impl CudaOptions {
    /// Where pages get their memory, of which `budget` is a rank's part.
    pub(super) fn store(&self, budget: impl Fn(u64) -> u64) -> Store {
        match self.kv_initial {
            None => Store::Fixed { bytes: budget(self.kv_bytes) },
            Some(initial) => {
                Store::Elastic { reserve: budget(self.kv_bytes), initial: budget(initial) }
            }
        }
    }

    pub(super) fn check(&self, ranks: u32) -> Result<(), CudaModelError> {
        if let Some(Retain { policy, .. }) = &self.retain {
            let expected = match policy {
                _ if ranks > 1 => Some(format!("none on one of {ranks} ranks")),
                _ if self.kv != KvFormat::Native => {
                    Some(format!("none beside KV format {}", self.kv))
                }
                Policy::Less { .. } => {
                    Some("a policy without residues, which GPUs do not read".to_owned())
                }
                _ => None,
            };
            if let Some(expected) = expected {
                let value = policy.to_string();
                return Err(CudaModelError::Option { option: "retain", value, expected });
            }
        }
        for (option, value) in [("max_rows", self.max_rows), ("prefill_rows", self.prefill_rows)] {
            if value == 0 || value > MAX_ROWS {
                return Err(CudaModelError::Option {
                    option,
                    value: value.to_string(),
                    expected: format!("between 1 and {MAX_ROWS}"),
                });
            }
        }
        Ok(())
    }
}

/// Bytes of device memory, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaMemory {
    /// Weights.
    pub weights: u64,
    /// KV pages, used or not; those of an elastic store with memory or without.
    pub pages: u64,
    /// What passes read and write besides.
    pub buffers: u64,
    /// Plans and partial results of attention.
    pub plans: u64,
    /// cuBLAS's workspace.
    pub cublas: u64,
}

impl CudaMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.pages + self.buffers + self.plans + self.cublas
    }
}

/// Whether `bytes` hold a page at least, and no more pages than there may be.
pub(super) fn check_pages(
    config: &LlamaConfig,
    dtype: DType,
    bytes: u64,
) -> Result<(), CudaModelError> {
    let shape = CacheShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        dtype,
        pages: 1,
    };
    let pages = bytes / shape.page_bytes();
    if pages == 0 || pages > u64::from(PagePool::MAX_PAGES) {
        return Err(CudaModelError::Option {
            option: "kv_bytes",
            value: bytes.to_string(),
            expected: format!(
                "between 1 and {} pages of {} bytes each",
                PagePool::MAX_PAGES,
                shape.page_bytes()
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_bytes_for_a_page_are_named() {
        let config = LlamaConfig::llama3_8b();
        // 64 tokens of 32 layers, 8 heads of 128, K and V, 2 bytes.
        let page = 64 * 32 * 8 * 128 * 2 * 2;
        assert!(check_pages(&config, DType::F16, page).is_ok());
        let error = check_pages(&config, DType::Bf16, page - 1).unwrap_err().to_string();
        assert!(error.starts_with("kv_bytes is 8388607; it must be between 1 and"), "{error}");
    }

    #[test]
    fn options_out_of_range_are_named() {
        let options = CudaOptions { max_rows: 0, ..CudaOptions::default() };
        let error = options.check(1).unwrap_err().to_string();
        assert_eq!(error, "max_rows is 0; it must be between 1 and 8192");
        assert!(CudaOptions::default().check(2).is_ok());
        let keeping = |policy: &str| {
            let policy = policy.parse().unwrap();
            let retain = Retain { policy, budget: deft::retain::Budget::Tokens(0), every: 1 };
            CudaOptions { retain: Some(retain), ..CudaOptions::default() }
        };
        let error = keeping("less:weights,h2o:64").check(1).unwrap_err().to_string();
        assert!(
            error.starts_with("retain is less:weights,h2o:64,")
                && error.contains("it must be a policy without residues"),
            "{error}"
        );
        let options = keeping("sinks:4,64");
        assert!(options.check(1).is_ok());
        let error = options.check(2).unwrap_err().to_string();
        assert_eq!(error, "retain is sinks:4,64; it must be none on one of 2 ranks");
        let kv = KvFormat::Kivi { bits: 4, group: 32 };
        let error = CudaOptions { kv, ..options }.check(1).unwrap_err().to_string();
        assert_eq!(error, "retain is sinks:4,64; it must be none beside KV format kivi4");
    }
}
