//! Device buffers that are filled from the host, or that stand in for rows there.

use bytemuck::Pod;

use crate::attention::BackendError;
use crate::cache::{Elements, ElementsMut};
use crate::cuda::{CudaDevice, CudaError, DeviceBuffer, DeviceElements, DevicePtr, Stream};

/// A device buffer that grows.
#[derive(Debug)]
pub(super) struct Scratch<T> {
    what: &'static str,
    buffer: Option<DeviceBuffer<T>>,
}

/// A device buffer with the host's copy of what is in it.
#[derive(Debug)]
pub(super) struct Mirror<T> {
    scratch: Scratch<T>,
    held: Vec<T>,
}

impl<T: Pod> Scratch<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, buffer: None }
    }

    /// The buffer, at least `len` long.
    fn reserve(&mut self, device: &CudaDevice, len: usize) -> Result<&DeviceBuffer<T>, CudaError> {
        if self.buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
            // The old one goes first: both together may not fit.
            self.buffer = None;
            let room = len.next_power_of_two();
            self.buffer = Some(DeviceBuffer::uninitialized(device, self.what, room)?);
        }
        Ok(self.buffer.as_ref().expect("it was just made"))
    }

    /// The buffer with `data` at its front, once the stream is there.
    pub(super) fn fill(
        &mut self,
        stream: &Stream,
        data: &[T],
    ) -> Result<&DeviceBuffer<T>, CudaError> {
        let buffer = self.reserve(stream.device(), data.len())?;
        buffer.upload(0, data, stream)?;
        Ok(buffer)
    }

    /// Where `rows` are on the device: the caller's, or a copy in the buffer.
    pub(super) fn source(
        &mut self,
        argument: &'static str,
        rows: Elements<'_>,
        stream: &Stream,
    ) -> Result<DevicePtr, BackendError> {
        match (rows.on_device(), rows.bytes()) {
            (Some(rows), _) => aligned(argument, rows),
            (None, bytes) => {
                let data = bytemuck::cast_slice(bytes.unwrap_or_default());
                Ok(self.fill(stream, data)?.pointer())
            }
        }
    }

    /// Where results go on the device: the caller's rows, or the buffer.
    pub(super) fn target(
        &mut self,
        argument: &'static str,
        rows: &ElementsMut<'_>,
        device: &CudaDevice,
    ) -> Result<DevicePtr, BackendError> {
        match rows.on_device() {
            Some(rows) => aligned(argument, rows),
            None => Ok(self.reserve(device, rows.len())?.pointer()),
        }
    }

    /// Waits, and reads the front of the buffer.
    pub(super) fn read(&self, data: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        match &self.buffer {
            Some(buffer) => buffer.read(0, data, stream),
            None => Ok(()),
        }
    }
}

impl<T: Pod + PartialEq> Mirror<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { scratch: Scratch::new(what), held: Vec::new() }
    }

    /// The buffer with `data` at its front; nothing is copied if it is there.
    pub(super) fn fill(
        &mut self,
        stream: &Stream,
        data: &[T],
    ) -> Result<&DeviceBuffer<T>, CudaError> {
        if self.held == data {
            return self.scratch.reserve(stream.device(), data.len());
        }
        self.held.clear();
        let buffer = self.scratch.fill(stream, data)?;
        self.held.extend_from_slice(data);
        Ok(buffer)
    }

    /// Where `data` is, which was filled in before, at the front of what there is.
    ///
    /// # Panics
    /// If it was not: a captured launch would read something else.
    pub(super) fn pointer_of(&self, data: &[T]) -> DevicePtr {
        assert!(self.held.starts_with(data), "a step is of one batch");
        let buffer = self.scratch.buffer.as_ref();
        buffer.map_or(DevicePtr::NULL, DeviceBuffer::pointer)
    }
}

/// Where rows begin, if kernels can read 16 bytes there.
pub(in crate::cuda) fn aligned(
    argument: &'static str,
    rows: DeviceElements,
) -> Result<DevicePtr, BackendError> {
    let address = rows.pointer.0;
    if !address.is_multiple_of(16) {
        return Err(BackendError::Misaligned { argument, address });
    }
    Ok(rows.pointer)
}
