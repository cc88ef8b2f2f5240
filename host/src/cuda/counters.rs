//! The words that kernels read by length slot.

use std::ops::Range;

use super::plan::overwrite;
use super::{CudaDevice, CudaError, DeviceBuffer, Stream};

/// One word a slot, with the host's copy of what is there.
#[derive(Debug)]
pub(super) struct Counters {
    what: &'static str,
    pub(super) host: Vec<u32>,
    pub(super) device: DeviceBuffer<u32>,
    /// Parts of `host` that are not on the device yet.
    pending: Vec<Range<usize>>,
}

impl Counters {
    pub(super) fn new(
        device: &CudaDevice,
        what: &'static str,
        slots: u32,
    ) -> Result<Self, CudaError> {
        Self::holding(device, what, vec![0; slots as usize])
    }

    fn holding(device: &CudaDevice, what: &'static str, host: Vec<u32>) -> Result<Self, CudaError> {
        Ok(Self {
            device: DeviceBuffer::from_slice(device, what, &host)?,
            host,
            what,
            pending: Vec::new(),
        })
    }

    /// These counters with room for `slots`, if they have not.
    pub(super) fn grown(
        &self,
        device: &CudaDevice,
        slots: usize,
    ) -> Result<Option<Self>, CudaError> {
        if slots <= self.host.len() {
            return Ok(None);
        }
        let mut host = self.host.clone();
        host.resize(slots.next_power_of_two(), 0);
        Self::holding(device, self.what, host).map(Some)
    }

    pub(super) fn set(&mut self, values: &[u32], stream: &Stream) -> Result<usize, CudaError> {
        overwrite(&mut self.host, 0, values, &mut self.pending);
        self.device.copy_ranges(&self.host, &mut self.pending, stream)
    }
}
