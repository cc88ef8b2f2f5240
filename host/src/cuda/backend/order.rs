//! The order of the cache's stream and those of callers' rows.

use super::CudaBackend;
use crate::cuda::{CudaError, DeviceElements, RawStream, Stream};

impl CudaBackend {
    /// Lets the cache's stream come after what the rows' streams have by now.
    pub(super) fn enter(&self, rows: &[Option<DeviceElements>]) -> Result<(), CudaError> {
        self.enter_from(rows.iter().flatten().map(|rows| rows.stream))
    }

    /// Lets the rows' streams come after what the cache's has by now.
    pub(super) fn leave(&self, rows: &[Option<DeviceElements>]) -> Result<(), CudaError> {
        self.leave_to(rows.iter().flatten().map(|rows| rows.stream))
    }

    pub(super) fn enter_from(
        &self,
        streams: impl Iterator<Item = RawStream>,
    ) -> Result<(), CudaError> {
        self.each_stream(streams, |foreign| {
            self.passed.record(foreign)?;
            self.stream.wait(&self.passed)
        })
    }

    pub(super) fn leave_to(
        &self,
        streams: impl Iterator<Item = RawStream>,
    ) -> Result<(), CudaError> {
        self.each_stream(streams, |foreign| {
            self.passed.record(&self.stream)?;
            foreign.wait(&self.passed)
        })
    }

    fn each_stream(
        &self,
        streams: impl Iterator<Item = RawStream>,
        mut act: impl FnMut(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut done: Vec<RawStream> = vec![self.stream.raw()];
        for stream in streams {
            if done.contains(&stream) {
                continue;
            }
            done.push(stream);
            // SAFETY: whoever made the rows vouched for their stream.
            let foreign = unsafe { Stream::borrow_raw(self.cache.device(), stream) };
            act(&foreign)?;
        }
        Ok(())
    }
}
