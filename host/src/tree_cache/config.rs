//! Where a cache is and how large.

use super::CacheError;
use crate::attention::{AttentionParams, Backend, check_params, cpu};
use crate::cache::{CacheShape, DType, PagePool, SLAB_PAGES, Store, elastic_pool};

/// Where K and V are kept and attention runs.
#[derive(Clone, Debug)]
pub struct Device {
    kind: Kind,
    fallback: Option<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::CudaDevice),
}

impl Device {
    /// The first GPU that can be opened, with the feature `cuda`; else the CPU, and [`Device::fallback`] says why.
    pub fn best() -> Self {
        #[cfg(feature = "cuda")]
        let fallback = match Self::first_gpu() {
            Ok(device) => return device,
            Err(reasons) => reasons,
        };
        #[cfg(not(feature = "cuda"))]
        let fallback = "built without the feature `cuda`".to_owned();
        Self { kind: Kind::Cpu, fallback: Some(fallback) }
    }

    /// The first GPU that can be opened, or why each of them cannot.
    #[cfg(feature = "cuda")]
    fn first_gpu() -> Result<Self, String> {
        let count = crate::cuda::CudaDevice::count().map_err(|error| error.to_string())?;
        let mut reasons = Vec::new();
        for ordinal in 0..count {
            match crate::cuda::CudaDevice::new(ordinal) {
                Ok(device) => return Ok(device.into()),
                Err(error) => reasons.push(format!("GPU {ordinal}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }

    /// Why [`Device::best`] took the CPU; `None` for a device that was asked for.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The CPU, with as many threads as rayon's global pool has.
    pub fn cpu() -> Self {
        Self { kind: Kind::Cpu, fallback: None }
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

    pub(super) fn backend(
        &self,
        shape: CacheShape,
        elastic: bool,
    ) -> Result<Box<dyn Backend>, CacheError> {
        match &self.kind {
            Kind::Cpu if elastic => Ok(cpu::new_elastic(shape)?),
            Kind::Cpu => Ok(cpu::new(shape)?),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => {
                use crate::cuda::CudaBackend;
                let made = match elastic {
                    true => CudaBackend::elastic(device, shape),
                    false => CudaBackend::new(device, shape),
                };
                match made {
                    Ok(backend) => Ok(Box::new(backend)),
                    Err(error) => Err(CacheError::Device(Box::new(error))),
                }
            }
        }
    }

    /// The shape of the pages that a cache of `shape` has there.
    pub(super) fn stored(&self, shape: &CacheShape) -> CacheShape {
        match &self.kind {
            Kind::Cpu => *shape,
            #[cfg(feature = "cuda")]
            Kind::Cuda(_) => shape.padded(),
        }
    }

    /// Pages whose memory comes and goes together in an elastic store.
    pub(super) fn extent_pages(&self, shape: &CacheShape) -> Result<u32, CacheError> {
        match &self.kind {
            Kind::Cpu => Ok(SLAB_PAGES),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => match device.extent_pages(shape) {
                Ok(pages) => Ok(pages),
                Err(error) => Err(CacheError::Device(Box::new(error))),
            },
        }
    }
}

/// A GPU that is open already, with the kernels it was told to use.
#[cfg(feature = "cuda")]
impl From<crate::cuda::CudaDevice> for Device {
    fn from(device: crate::cuda::CudaDevice) -> Self {
        Self { kind: Kind::Cuda(device), fallback: None }
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
    /// Elements of a head's query, key and value: 64, 80, 96, 112, 128, 192 or 256. A GPU keeps what it has no kernels for
    /// as the next larger of 64, 128 and 256; rows that go in and come out are of this many.
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

    /// Checks every field; the shape and the page pool of a cache of so many `layers` of its own, whose pages are as
    /// `stored` says.
    pub(super) fn resolve(
        &self,
        layers: u32,
        store: Store,
        stored: impl Fn(&CacheShape) -> CacheShape,
        extent_pages: impl FnOnce(&CacheShape) -> Result<u32, CacheError>,
    ) -> Result<(CacheShape, PagePool), CacheError> {
        let mut shape = CacheShape {
            layers,
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
        let pages = stored(&shape);
        let pool = match store {
            Store::Fixed { bytes } => PagePool::with_capacity_bytes(bytes, pages.page_bytes())?,
            Store::Elastic { reserve, initial } => {
                elastic_pool(&pages, [reserve, initial], extent_pages(&pages)?)?
            }
        };
        shape.pages = pool.capacity();
        stored(&shape).validate()?;
        Ok((shape, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: CacheConfig) -> Result<(CacheShape, PagePool), CacheError> {
        let store = Store::Fixed { bytes: config.capacity_bytes };
        let extents = |_: &CacheShape| unreachable!("the store is fixed");
        config.resolve(config.layers, store, |shape| *shape, extents)
    }

    fn refuse(config: CacheConfig) -> String {
        resolve(config).unwrap_err().to_string()
    }

    const GOOD: CacheConfig = CacheConfig {
        layers: 32,
        q_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        dtype: DType::Bf16,
        capacity_bytes: 1 << 30,
        scale: None,
        soft_cap: None,
    };

    fn small() -> crate::CacheBuilder {
        crate::TreeCache::builder(&Device::cpu())
            .layers(1)
            .heads(32, 8, 128)
            .dtype(DType::Bf16)
            .capacity_bytes(1 << 20)
    }

    #[test]
    fn a_gibibyte_is_128_whole_pages_of_llama_3_8b() {
        let (shape, pool) = resolve(GOOD).unwrap();
        assert_eq!((shape.pages, pool.free()), (128, 128));
    }

    #[test]
    fn more_query_heads_than_a_plan_takes_are_refused_at_once() {
        let error = small().heads(1 << 20, 1, 128).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "q_heads is 1048576; with 1 kv_heads the device takes at most 65535"
        );
    }

    #[test]
    fn a_backend_of_one_s_own_has_the_shape_that_was_asked_for() {
        let own = small().backend(|shape| Ok(cpu::new(shape)?)).build();
        assert_eq!(own.unwrap().backend().shape().layers, 1);
        let other = |shape| {
            let other = CacheShape { layers: 2, ..shape };
            Ok(cpu::new(other)?)
        };
        let error = small().backend(other).build().unwrap_err();
        assert!(matches!(error, CacheError::BackendShape { .. }), "{error}");
    }

    #[test]
    fn a_device_that_was_asked_for_is_no_fallback() {
        assert_eq!(Device::cpu().fallback(), None);
        let best = Device::best();
        assert_eq!(best.fallback().is_some(), matches!(best.kind, Kind::Cpu));
        assert_ne!(best.fallback(), Some(""));
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let good = GOOD;
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
        let head_dim = 72;
        assert!(refuse(CacheConfig { head_dim, ..good }).starts_with("head_dim is 72"));
        let capacity_bytes = 0;
        assert_eq!(
            refuse(CacheConfig { capacity_bytes, ..good }),
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
