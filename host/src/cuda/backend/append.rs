//! New tokens into the cache.

use kernels_gpu::abi::AppendTarget;

use super::CudaBackend;
use crate::attention::{Backend, BackendError, Counters, Rotation, check_append};
use crate::cache::Elements;
use crate::cuda::Append;

impl CudaBackend {
    /// Appends rows, rotated or as they are.
    pub(super) fn write(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        rows: [Elements<'_>; 2],
        rotation: Option<Rotation<'_>>,
    ) -> Result<(), BackendError> {
        check_append(self.shape(), layer, targets, counters, rows, rotation)?;
        let on_device = rows.map(|rows| rows.on_device());
        self.see(&[("k", on_device[0]), ("v", on_device[1])])?;
        self.set_counters(counters)?;
        let append = self.sources(targets, rows)?;
        let rotary = rotation.map(|rotation| self.rotary(rotation)).transpose()?;
        self.enter(&on_device)?;
        let stream = self.stream.raw();
        // SAFETY: the buffers hold a row for each target, targets name pages and counters that exist, and with a
        // rotation there is a position for each, and its row of the tables (checked above); our buffers are used on
        // one stream only, and the caller's are kept by their promise.
        unsafe {
            let append = self.padded_append(append)?;
            match rotary {
                None => self.cache.append(layer, &append, stream),
                Some(rotary) => self.cache.append_rotated(layer, &append, &rotary, stream),
            }
        }?;
        Ok(self.leave(&on_device)?)
    }

    /// What an append reads, brought to the device where it is not.
    fn sources(
        &mut self,
        targets: &[AppendTarget],
        [k, v]: [Elements<'_>; 2],
    ) -> Result<Append, BackendError> {
        let stream = &self.stream;
        let on_device = match &mut self.capturing {
            Some(inputs) => inputs.targets.pointer_of(targets),
            None => self.targets.fill(stream, targets)?.pointer(),
        };
        Ok(Append {
            targets: on_device,
            count: targets.len() as u32,
            k: self.k.source("k", k, stream)?,
            v: self.v.source("v", v, stream)?,
        })
    }
}
