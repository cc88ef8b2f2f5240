//! Device memory.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::error::check;
use super::sys;
use super::{CudaDevice, CudaError, DevicePtr, Stream};

/// Bytes that two changes may lie apart and still be one copy.
const COPY_GAP_BYTES: usize = 1024;

/// An array in device memory, freed when dropped.
///
/// Copies to and from host slices are ordered on the stream they are given, and waited for.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    device: CudaDevice,
    pointer: DevicePtr,
    len: usize,
    /// Whether the memory is somebody else's, who keeps it as long.
    borrowed: bool,
    marker: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    /// Takes room for `len` elements; `what` names the buffer in errors. The content is undefined.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn uninitialized(
        device: &CudaDevice,
        what: &'static str,
        len: usize,
    ) -> Result<Self, CudaError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut pointer = 0;
        if bytes > 0 {
            let _current = device.activate()?;
            // SAFETY: `pointer` is a valid place for an address; our context is current.
            let code = unsafe { sys::cuMemAlloc_v2(&mut pointer, bytes) };
            if code == sys::ERROR_OUT_OF_MEMORY {
                let (free, total) = device.memory_info()?;
                return Err(CudaError::OutOfMemory { what, bytes, free, total });
            }
            check("cuMemAlloc", code)?;
        }
        Ok(Self {
            device: device.clone(),
            pointer: DevicePtr(pointer),
            len,
            borrowed: false,
            marker: PhantomData,
        })
    }

    /// An array at an address that somebody else keeps as long.
    pub(super) fn borrowed(device: &CudaDevice, pointer: DevicePtr, len: usize) -> Self {
        Self { device: device.clone(), pointer, len, borrowed: true, marker: PhantomData }
    }

    /// A copy of `data` on the device. Waits for the copy.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn from_slice(
        device: &CudaDevice,
        what: &'static str,
        data: &[T],
    ) -> Result<Self, CudaError> {
        let buffer = Self::uninitialized(device, what, data.len())?;
        buffer.write(0, data, &Stream::legacy(device))?;
        Ok(buffer)
    }

    /// The device that the array is on.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }
    /// Where the array begins.
    pub fn pointer(&self) -> DevicePtr {
        self.pointer
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Where element `index` is.
    pub(super) fn at(&self, index: usize) -> DevicePtr {
        self.pointer.offset((index * size_of::<T>()) as u64)
    }

    /// Copies `data` to `first..` and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Length`] if it does not fit, [`CudaError::Driver`].
    pub fn write(&self, first: usize, data: &[T], stream: &Stream) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: the wait below keeps `data` alive over the copy.
        unsafe { self.enqueue_write(first, data, stream) }?;
        match data.is_empty() {
            true => Ok(()),
            false => stream.finish(),
        }
    }

    /// Enqueues a copy of `data` to `first..`.
    ///
    /// # Safety
    /// `data` stays as it is until the copy is done.
    ///
    /// # Errors
    /// [`CudaError::Length`] if it does not fit, [`CudaError::Driver`].
    pub(super) unsafe fn enqueue_write(
        &self,
        first: usize,
        data: &[T],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.check_range("data", first, data.len())?;
        let _current = self.device.activate()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer; the caller keeps `data`.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.at(first).0,
                data.as_ptr().cast(),
                size_of_val(data),
                stream.raw().handle(),
            )
        })
    }

    /// Copies elements `first..` to `data` and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Length`] if there are not as many, [`CudaError::Driver`].
    pub fn read(&self, first: usize, data: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        self.check_range("data", first, data.len())?;
        let _current = self.device.activate()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer, the wait below ends the copy before `data` is used, and any bytes are
        // a `T` (`Pod`).
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                self.at(first).0,
                size_of_val(data),
                stream.raw().handle(),
            )
        })?;
        stream.finish()
    }

    /// Enqueues a copy of `data` to `first..` and does not wait for it: it is taken from pinned memory that
    /// `data` is copied to now. Not while `stream` is captured.
    ///
    /// # Errors
    /// [`CudaError::Length`] if it does not fit, [`CudaError::Driver`].
    pub fn upload(&self, first: usize, data: &[T], stream: &Stream) -> Result<(), CudaError> {
        self.check_range("data", first, data.len())?;
        self.upload_parts(std::iter::once((first, data)), stream).map(drop)
    }

    /// As [`DeviceBuffer::upload`], for the parts `ranges` of `image`, which is as long as the buffer; returns
    /// the bytes copied. `ranges` is then empty; if the driver refused, it names what is still to be copied.
    pub(super) fn copy_ranges(
        &self,
        image: &[T],
        ranges: &mut Vec<Range<usize>>,
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        debug_assert_eq!(image.len(), self.len);
        join_ranges(ranges, COPY_GAP_BYTES / size_of::<T>());
        let parts = ranges.iter().map(|range| (range.start, &image[range.clone()]));
        let bytes = self.upload_parts(parts, stream)?;
        ranges.clear();
        Ok(bytes)
    }

    /// Enqueues copies of parts that fit, each with its first element; returns the bytes copied.
    fn upload_parts<'a>(
        &self,
        parts: impl Iterator<Item = (usize, &'a [T])> + Clone,
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        let bytes = parts.clone().map(|(_, part)| size_of_val(part)).sum();
        if bytes == 0 {
            return Ok(0);
        }
        self.device.staging().copy(bytes, stream, |piece| {
            for (first, part) in parts {
                let staged = piece.put(part);
                // SAFETY: the part fits the buffer; the piece is not written again before the copy is done.
                check("cuMemcpyHtoDAsync", unsafe {
                    sys::cuMemcpyHtoDAsync_v2(
                        self.at(first).0,
                        staged,
                        size_of_val(part),
                        stream.raw().handle(),
                    )
                })?;
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Fills the whole buffer with one byte value, ordered on `stream`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fill_bytes(&self, value: u8, stream: &Stream) -> Result<(), CudaError> {
        if self.is_empty() {
            return Ok(());
        }
        let _current = self.device.activate()?;
        // SAFETY: the range is the buffer's own.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(
                self.pointer.0,
                value,
                self.len * size_of::<T>(),
                stream.raw().handle(),
            )
        })
    }

    fn check_range(
        &self,
        argument: &'static str,
        first: usize,
        len: usize,
    ) -> Result<(), CudaError> {
        match first.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(CudaError::Length {
                argument,
                got: len,
                expected: self.len.saturating_sub(first),
            }),
        }
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.borrowed || self.pointer == DevicePtr::NULL {
            return;
        }
        let _current = self.device.activate();
        // SAFETY: the address came from the matching allocation and is freed once. A failure means that
        // the context is lost, and the memory with it.
        unsafe { sys::cuMemFree_v2(self.pointer.0) };
    }
}

/// Sorts ranges that must be copied and joins those with gaps of up to `gap` elements (one copy of a little
/// more costs less than two).
fn join_ranges(ranges: &mut Vec<Range<usize>>, gap: usize) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|later, kept| {
        let near = later.start <= kept.end + gap;
        if near {
            kept.end = kept.end.max(later.end);
        }
        near
    });
}

#[cfg(test)]
mod tests {
    use super::join_ranges;

    #[test]
    fn dirty_ranges_are_joined_over_small_gaps_only() {
        let mut ranges = vec![40..44, 0..4, 2..8, 20..20, 12..16];
        join_ranges(&mut ranges, 4);
        assert_eq!(ranges, [0..16, 40..44]);
    }
}
