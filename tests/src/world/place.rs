//! Where a cache of several formats may be.

use deft::{CacheBuilder, Device, TreeCache};
use kernels_gpu::Arch;

use crate::emulated::Emulated;

/// Where a cache is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the host's memory.
    Cpu,
    /// The kernels of an architecture, emulated.
    Emulated(Arch),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Gpu(deft::cuda::CudaDevice),
}

impl Place {
    /// A cache there; `seed` decides what an emulated schedule may.
    pub(crate) fn builder(&self, seed: u64) -> CacheBuilder {
        match self {
            Self::Cpu => TreeCache::builder(&Device::cpu()),
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => {
                let device = device.clone();
                TreeCache::builder(&Device::cpu()).backend(move |shape| {
                    let backend = deft::cuda::CudaBackend::new(&device, shape);
                    Ok(Box::new(backend.map_err(deft::attention::BackendError::from)?))
                })
            }
            Self::Emulated(arch) => {
                let arch = *arch;
                let make = move |shape| Emulated::new(shape, seed).with_kernels(arch);
                TreeCache::builder(&Device::cpu()).backend(move |shape| Ok(Box::new(make(shape))))
            }
        }
    }
}
