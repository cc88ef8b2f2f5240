//! Where tensors and plans are.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::sync::{Mutex, PoisonError};

use deft::cuda::CudaDevice;

use crate::error::{Error, refuse};

/// The host's memory, or a GPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host's memory.
    Cpu,
    /// That of GPU `0`, as the driver counts.
    Cuda(u32),
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Cuda(gpu) => write!(f, "GPU {gpu}"),
        }
    }
}

impl Device {
    /// As the header has it: -1 for the CPU, otherwise a GPU's number.
    pub(crate) fn numbered(gpu: i32) -> Result<Self, Error> {
        match u32::try_from(gpu) {
            Ok(gpu) => Ok(Self::Cuda(gpu)),
            Err(_) if gpu == -1 => Ok(Self::Cpu),
            Err(_) => refuse!("gpu is {gpu}; it must be -1 for the CPU, or a GPU's number"),
        }
    }
}

/// A GPU, opened once in a process, so that its kernels are compiled once.
pub(crate) fn open(gpu: u32) -> Result<CudaDevice, Error> {
    static OPEN: Mutex<BTreeMap<u32, CudaDevice>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&gpu) {
        return Ok(device.clone());
    }
    let device = CudaDevice::new(gpu)?;
    open.insert(gpu, device.clone());
    Ok(device)
}
