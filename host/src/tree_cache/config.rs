//! Where a cache is and how large.

use super::CacheError;
use crate::attention::{AttentionParams, Backend, check_params, cpu};
use crate::cache::{CacheShape, DType, PagePool};
use crate::plan::HeadShape;

/// Where K and V are kept and attention runs.
#[derive(Clone, Debug)]
pub struct Device(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::CudaDevice),
}

impl Device {
    /// The first GPU that there are kernels for, with the feature `cuda`; else the CPU.
    pub fn best() -> Self {
        #[cfg(feature = "cuda")]
        if let Ok(device) = Self::cuda(0) {
            return device;
        }
        Self::cpu()
    }

    /// The CPU, with as many threads as rayon's global pool has.
    pub fn cpu() -> Self {
        Self(Kind::Cpu)
    }

    /// GPU `ordinal`, counted as the driver does.
    ///
    /// # Errors
    /// [`CacheError::Device`] without a driver, without that GPU, or for one too old.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: u32) -> Result<Self, CacheError> {
        match crate::cuda::CudaDevice::new(ordinal) {
            Ok(device) => Ok(device.into()),
            Err(error) => Err(CacheError::Device(Box::new(error))),
        }
    }

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        !matches!(self.0, Kind::Cpu)
    }

    pub(super) fn backend(&self, shape: CacheShape) -> Result<Box<dyn Backend>, CacheError> {
        match &self.0 {
            Kind::Cpu => Ok(cpu::new(shape)?),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => match crate::cuda::CudaBackend::new(device, shape) {
                Ok(backend) => Ok(Box::new(backend)),
                Err(error) => Err(CacheError::Device(Box::new(error))),
            },
        }
    }
}

/// A GPU that is open already, with the kernels it was told to use.
#[cfg(feature = "cuda")]
impl From<crate::cuda::CudaDevice> for Device {
    fn from(device: crate::cuda::CudaDevice) -> Self {
        Self(Kind::Cuda(device))
    }
}

/// A model's attention layers, and the memory that their KV cache may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheConfig {
    /// Layers.
    pub layers: u32,
    /// Query heads of a layer; a multiple of `kv_heads`.
    pub q_heads: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Elements of a head's query, key and value: 64, 128 or 256.
    pub head_dim: u32,
    /// Type of K and V as stored, of queries, and of outputs.
    pub dtype: DType,
    /// Bytes for pages: as many as fit, each of 64 tokens of all layers and KV heads.
    pub capacity_bytes: u64,
    /// What `q . k` is multiplied by; `None` for `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// With `Some(cap)` a scaled logit `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f32>,
}

impl Default for CacheConfig {
    /// Llama-3-8B in bf16 with 1 GiB of pages, which is 8,192 tokens.
    fn default() -> Self {
        let HeadShape {
            q_heads,
            kv_heads,
            head_dim,
        } = HeadShape::LLAMA3_8B;
        Self {
            layers: 32,
            q_heads,
            kv_heads,
            head_dim,
            dtype: DType::Bf16,
            capacity_bytes: 1 << 30,
            scale: None,
            soft_cap: None,
        }
    }
}

impl CacheConfig {
    /// The model's numbers.
    pub fn params(&self) -> AttentionParams {
        let mut params = AttentionParams::new(self.head_dim);
        params.scale = self.scale.unwrap_or(params.scale);
        params.soft_cap = self.soft_cap;
        params
    }

    /// Query heads a KV head.
    pub(super) fn group_size(&self) -> u32 {
        self.q_heads / self.kv_heads
    }

    /// Checks every field; the cache's shape and its page pool.
    pub(super) fn resolve(&self) -> Result<(CacheShape, PagePool), CacheError> {
        let mut shape = CacheShape {
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: self.dtype,
            pages: 1,
        };
        shape.validate()?;
        let (q_heads, kv_heads) = (self.q_heads, self.kv_heads);
        if q_heads == 0 || q_heads % kv_heads != 0 {
            return Err(CacheError::Heads { q_heads, kv_heads });
        }
        check_params(&self.params())?;
        let pool = PagePool::with_capacity_bytes(self.capacity_bytes, shape.page_bytes())?;
        shape.pages = pool.capacity();
        shape.validate()?;
        Ok((shape, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(config: CacheConfig) -> String {
        config.resolve().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_a_gibibyte_of_whole_pages() {
        let (shape, pool) = CacheConfig::default().resolve().unwrap();
        assert_eq!((shape.pages, pool.free()), (128, 128));
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let good = CacheConfig::default();
        let kv_heads = 0;
        assert_eq!(
            refuse(CacheConfig { kv_heads, ..good }),
            "kv_heads is 0; it must be between 1 and 4096"
        );
        for q_heads in [0, 12] {
            assert_eq!(
                refuse(CacheConfig { q_heads, ..good }),
                format!("q_heads is {q_heads}; it must be a positive multiple of kv_heads, 8")
            );
        }
        let layers = 0;
        assert!(refuse(CacheConfig { layers, ..good }).starts_with("layers is 0"));
        let head_dim = 96;
        assert!(refuse(CacheConfig { head_dim, ..good }).starts_with("head_dim is 96"));
        let capacity_bytes = 0;
        assert_eq!(
            refuse(CacheConfig {
                capacity_bytes,
                ..good
            }),
            "capacity_bytes is 0, but a page takes 8388608 bytes"
        );
        let soft_cap = Some(0.0);
        assert_eq!(
            refuse(CacheConfig { soft_cap, ..good }),
            "soft_cap is 0; it must be positive and finite"
        );
        let scale = Some(f32::NAN);
        assert!(refuse(CacheConfig { scale, ..good }).starts_with("scale is NaN"));
    }
}
