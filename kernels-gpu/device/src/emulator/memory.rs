//! Global memory: buffers that a kernel may access, and nothing else.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use bytemuck::Pod;

use crate::emulator::report::{Cause, Checked, Fault, Report};
use crate::emulator::shadow::GRANULE;
use crate::emulator::span::Span;

/// Device addresses of neighbouring buffers differ by this much, so that an index far out of bounds
/// still names the buffer it was meant for.
const SPACING: u64 = 1 << 48;

/// Byte that fills what nothing has written: a NaN in every float type.
pub(crate) const POISON: u8 = 0xff;

/// A device's global memory. Kernels get addresses from it that mean something to the emulator alone;
/// only the device module's loads and stores understand them.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

/// A buffer, as its owner holds it. What kernels get is [`DevicePointer::as_ptr`].
pub struct DevicePointer<T> {
    index: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for DevicePointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DevicePointer<T> {}

impl<T> DevicePointer<T> {
    /// Device address of the buffer's first element. Only the device module's functions understand it.
    pub fn as_ptr(self) -> *const T {
        self.address() as *const T
    }

    /// [`Self::as_ptr`], for a buffer that the kernel writes.
    pub fn as_mut_ptr(self) -> *mut T {
        self.address() as *mut T
    }

    fn address(self) -> u64 {
        address_of(self.index)
    }
}

/// Device address of buffer number `index`.
pub(crate) fn address_of(index: usize) -> u64 {
    (index as u64 + 1) * SPACING
}

#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) name: String,
    bytes: u64,
    pub(crate) constant: bool,
    pub(crate) words: Box<[AtomicU64]>,
    /// A flag a granule; empty if all were written from the start.
    pub(crate) written: Box<[AtomicU8]>,
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer that kernels read and nobody writes.
    pub fn constant<T: Pod>(&mut self, name: &str, values: &[T]) -> DevicePointer<T> {
        self.add(name, bytemuck::cast_slice(values), true)
    }

    /// A buffer that kernels read and write.
    pub fn buffer<T: Pod>(&mut self, name: &str, values: &[T]) -> DevicePointer<T> {
        self.add(name, bytemuck::cast_slice(values), false)
    }

    /// A buffer of `len` values that nothing has written.
    pub fn unwritten<T: Pod>(&mut self, name: &str, len: usize) -> DevicePointer<T> {
        let bytes = vec![POISON; len * size_of::<T>()];
        let pointer = self.add(name, &bytes, false);
        let granules = bytes.len().div_ceil(GRANULE as usize);
        self.buffers[pointer.index].written = (0..granules).map(|_| AtomicU8::new(0)).collect();
        pointer
    }

    /// Overwrites the first elements of a buffer, as the host does between launches.
    ///
    /// # Panics
    /// If the values do not fit.
    pub fn write<T: Pod>(&mut self, pointer: DevicePointer<T>, values: &[T]) {
        let span = self
            .span(pointer.address(), size_of_val(values) as u32)
            .unwrap_or_else(|fault| panic!("{}", fault.message));
        span.store(bytemuck::cast_slice(values));
        span.mark_written();
    }

    /// The values of a whole buffer.
    ///
    /// # Errors
    /// If a part of it was never written: a [`Cause::Unwritten`] that names the first such element.
    pub fn read<T: Pod>(&self, pointer: DevicePointer<T>) -> Result<Vec<T>, Report> {
        let buffer = &self.buffers[pointer.index];
        match buffer.written.iter().position(|flag| flag.load(Relaxed) == 0) {
            None => Ok(self.read_poisoned(pointer)),
            Some(granule) => Err(Report {
                cause: Cause::Unwritten,
                block: [0; 3],
                thread: None,
                site: None,
                seed: 0,
                schedule: None,
                message: format!(
                    "element {} of buffer `{}` was never written",
                    granule * GRANULE as usize / size_of::<T>(),
                    buffer.name
                ),
            }),
        }
    }

    /// The values of a whole buffer; the bytes of those never written are 0xff.
    pub fn read_poisoned<T: Pod>(&self, pointer: DevicePointer<T>) -> Vec<T> {
        let buffer = &self.buffers[pointer.index];
        let words: Vec<u64> = buffer.words.iter().map(|word| word.load(Relaxed)).collect();
        let bytes = &bytemuck::cast_slice::<u64, u8>(&words)[..buffer.bytes as usize];
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    fn add<T>(&mut self, name: &str, bytes: &[u8], constant: bool) -> DevicePointer<T> {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [POISON; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            AtomicU64::new(u64::from_ne_bytes(word))
        });
        self.buffers.push(Buffer {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            constant,
            words: words.collect(),
            written: Box::default(),
        });
        DevicePointer { index: self.buffers.len() - 1, element: PhantomData }
    }

    pub(crate) fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The bytes at a device address.
    #[inline]
    pub(crate) fn span(&self, address: u64, bytes: u32) -> Checked<Span<'_>> {
        let index = (address / SPACING).wrapping_sub(1) as usize;
        let offset = address % SPACING;
        match self.buffers.get(index) {
            Some(buffer) if offset + u64::from(bytes) <= buffer.bytes => {
                Ok(Span { buffer, index, offset, bytes })
            }
            _ => Err(self.out_of_bounds(address, bytes)),
        }
    }

    #[cold]
    fn out_of_bounds(&self, address: u64, bytes: u32) -> Box<Fault> {
        // Closer to the next buffer's start than to this one's: an index below zero.
        let nearest = (address + SPACING / 2) / SPACING;
        let place = match self.buffers.get(nearest.wrapping_sub(1) as usize) {
            None => format!("{address:#x}, where no buffer is"),
            Some(buffer) => format!(
                "byte {} of buffer `{}`, which has {} bytes",
                address as i64 - (nearest * SPACING) as i64,
                buffer.name,
                buffer.bytes
            ),
        };
        Fault::new(Cause::OutOfBounds, format!("accesses {bytes} bytes out of bounds: {place}"))
    }
}

impl Buffer {
    pub(crate) fn granules(&self) -> usize {
        if self.constant {
            return 0;
        }
        (self.bytes as usize).div_ceil(GRANULE as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_out_of_bounds_names_the_buffer_it_was_meant_for() {
        let mut memory = Memory::new();
        let first = memory.buffer("first", &[0_u32; 4]);
        let second = memory.buffer("second", &[0_u32; 4]);
        for (address, words) in [
            (first.as_ptr().wrapping_add(4), "byte 16 of buffer `first`, which has 16 bytes"),
            (first.as_ptr().wrapping_add(1 << 40), "of buffer `first`"),
            (second.as_ptr().wrapping_sub(1), "byte -4 of buffer `second`"),
            (std::ptr::null(), "0x0, where no buffer is"),
        ] {
            let fault = memory.span(address as u64, 4).err().unwrap();
            assert_eq!(fault.cause, Cause::OutOfBounds);
            assert!(fault.message.contains(words), "{}", fault.message);
        }
        assert!(memory.span(second.as_ptr() as u64 + 12, 4).is_ok());
        assert!(memory.span(second.as_ptr() as u64 + 12, 8).is_err());
    }

    #[test]
    fn what_is_written_is_read_back_in_any_width() {
        let mut memory = Memory::new();
        let bytes: Vec<u8> = (0..32).collect();
        let buffer = memory.buffer("buffer", &bytes);
        let at = |offset: u64, bytes| memory.span(buffer.as_ptr() as u64 + offset, bytes).unwrap();
        assert_eq!(at(6, 2).load_value::<u16>().to_ne_bytes(), [6, 7]);
        assert_eq!(at(12, 4).load_value::<u32>().to_ne_bytes(), [12, 13, 14, 15]);
        at(16, 16).store(&[9; 16]);
        at(2, 2).store(&[1, 2]);
        assert_eq!(at(0, 8).load_value::<[u8; 8]>(), [0, 1, 1, 2, 4, 5, 6, 7]);
        assert_eq!(memory.read(buffer).unwrap()[16..], [9; 16]);
    }

    #[test]
    fn an_element_that_was_never_written_is_named() {
        let mut memory = Memory::new();
        let buffer = memory.unwritten::<u32>("result", 4);
        assert!(memory.read(buffer).unwrap_err().message.contains("element 0 of buffer `result`"));
        memory.write(buffer, &[1, 2, 3]);
        assert!(memory.read(buffer).unwrap_err().message.contains("element 3 of buffer `result`"));
        assert_eq!(memory.read_poisoned(buffer), [1, 2, 3, u32::MAX]);
    }
}
