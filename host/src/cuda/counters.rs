//! The words that kernels read by length slot.

use super::plan::overwrite;
use super::{CudaDevice, CudaError, DeviceBuffer, Stream};

/// One word a slot, with the host's copy of what is there.
#[derive(Debug)]
pub(super) struct Counters {
    what: &'static str,
    pub(super) host: Vec<u32>,
    pub(super) device: DeviceBuffer<u32>,
}

impl Counters {
    pub(super) fn new(
        device: &CudaDevice,
        what: &'static str,
        slots: u32,
    ) -> Result<Self, CudaError> {
        let host = vec![0; slots as usize];
        Ok(Self {
            device: DeviceBuffer::from_slice(device, what, &host)?,
            host,
            what,
        })
    }

    pub(super) fn reserve(&mut self, device: &CudaDevice, slots: usize) -> Result<(), CudaError> {
        if slots > self.host.len() {
            let mut host = self.host.clone();
            host.resize(slots.next_power_of_two(), 0);
            self.device = DeviceBuffer::from_slice(device, self.what, &host)?;
            self.host = host;
        }
        Ok(())
    }

    pub(super) fn set(&mut self, values: &[u32], stream: &Stream) -> Result<usize, CudaError> {
        let mut changed = Vec::new();
        overwrite(&mut self.host, 0, values, &mut changed);
        self.device.copy_ranges(&self.host, changed, stream)
    }
}
