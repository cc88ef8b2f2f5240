//! Global memory: buffers that a kernel may access, and nothing else.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use bytemuck::Pod;

use crate::report::{Cause, Checked, Fault, Report, Site};
use crate::shadow::GRANULE;

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
        (self.index as u64 + 1) * SPACING
    }
}

#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) name: String,
    bytes: u64,
    constant: bool,
    words: Box<[AtomicU64]>,
    /// A flag a granule; empty if all were written from the start.
    written: Box<[AtomicU8]>,
}

/// Bytes of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Span<'m> {
    pub(crate) buffer: &'m Buffer,
    pub(crate) index: usize,
    pub(crate) offset: u64,
    bytes: u32,
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
        match buffer
            .written
            .iter()
            .position(|flag| flag.load(Relaxed) == 0)
        {
            None => Ok(self.read_poisoned(pointer)),
            Some(granule) => Err(Report {
                cause: Cause::Unwritten,
                block: [0; 3],
                thread: None,
                site: None,
                seed: 0,
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
        bytes
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
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
        DevicePointer {
            index: self.buffers.len() - 1,
            element: PhantomData,
        }
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
            Some(buffer) if offset + u64::from(bytes) <= buffer.bytes => Ok(Span {
                buffer,
                index,
                offset,
                bytes,
            }),
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
        Fault::new(
            Cause::OutOfBounds,
            format!("accesses {bytes} bytes out of bounds: {place}"),
        )
    }
}

impl<'m> Span<'m> {
    /// Bytes as a value; single words are read atomically.
    #[inline]
    pub(crate) fn load_value<T: Pod>(&self) -> T {
        let mut value = T::zeroed();
        self.load(bytemuck::bytes_of_mut(&mut value));
        value
    }

    /// Copies the bytes out. The address is a multiple of 2, 4 or 8 as the length is.
    #[inline]
    pub(crate) fn load(&self, out: &mut [u8]) {
        debug_assert_eq!(out.len(), self.bytes as usize);
        match out.len() {
            2 => out.copy_from_slice(&self.half(0).load(Relaxed).to_ne_bytes()),
            4 => out.copy_from_slice(&self.word(0).load(Relaxed).to_ne_bytes()),
            _ => {
                for (i, chunk) in out.chunks_exact_mut(8).enumerate() {
                    chunk.copy_from_slice(&self.double(i).load(Relaxed).to_ne_bytes());
                }
            }
        }
    }

    /// Copies bytes in.
    #[inline]
    pub(crate) fn store(&self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), self.bytes as usize);
        let mut chunks = bytes.chunks_exact(8);
        for (i, chunk) in chunks.by_ref().enumerate() {
            let word = u64::from_ne_bytes(chunk.try_into().expect("8 bytes"));
            self.double(i).store(word, Relaxed);
        }
        let done = bytes.len() / 8 * 4;
        for (i, chunk) in chunks.remainder().chunks_exact(2).enumerate() {
            let half = u16::from_ne_bytes(chunk.try_into().expect("2 bytes"));
            self.half(done + i).store(half, Relaxed);
        }
    }

    /// The value as an atomic.
    pub(crate) fn atomic(&self) -> &'m AtomicU32 {
        self.word(0)
    }

    #[inline]
    fn double(&self, i: usize) -> &'m AtomicU64 {
        &self.buffer.words[self.offset as usize / 8 + i]
    }

    #[inline]
    fn word(&self, i: usize) -> &'m AtomicU32 {
        let words: *const AtomicU32 = self.buffer.words.as_ptr().cast();
        let index = self.offset as usize / 4 + i;
        assert!(index < self.buffer.words.len() * 2);
        // SAFETY: in bounds, and an atomic of half the size needs half the alignment.
        unsafe { &*words.add(index) }
    }

    #[inline]
    fn half(&self, i: usize) -> &'m AtomicU16 {
        let words: *const AtomicU16 = self.buffer.words.as_ptr().cast();
        let index = self.offset as usize / 2 + i;
        assert!(index < self.buffer.words.len() * 4);
        // SAFETY: in bounds, and an atomic of a quarter of the size needs a quarter of the alignment.
        unsafe { &*words.add(index) }
    }

    /// Fails if a byte was never written.
    #[inline]
    pub(crate) fn check_written(&self) -> Checked {
        if self.buffer.written.is_empty() {
            return Ok(());
        }
        let flags = &self.buffer.written[self.granules()];
        match flags.iter().position(|flag| flag.load(Relaxed) == 0) {
            None => Ok(()),
            Some(granule) => Err(Fault::new(
                Cause::Unwritten,
                format!(
                    "reads buffer `{}` at byte {}, which nothing has written",
                    self.buffer.name,
                    self.offset + granule as u64 * u64::from(GRANULE)
                ),
            )),
        }
    }

    #[inline]
    pub(crate) fn mark_written(&self) {
        if !self.buffer.written.is_empty() {
            for flag in &self.buffer.written[self.granules()] {
                flag.store(1, Relaxed);
            }
        }
    }

    /// Fails if the buffer is constant.
    #[inline]
    pub(crate) fn check_writable(&self) -> Checked {
        if self.buffer.constant {
            return Err(Fault::new(
                Cause::Constant,
                format!(
                    "writes byte {} of buffer `{}`, which is constant",
                    self.offset, self.buffer.name
                ),
            ));
        }
        Ok(())
    }

    pub(crate) fn is_constant(&self) -> bool {
        self.buffer.constant
    }

    /// Granules of the span.
    #[inline]
    pub(crate) fn granules(&self) -> std::ops::Range<usize> {
        let first = self.offset as usize / GRANULE as usize;
        first..first + (self.bytes / GRANULE) as usize
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

/// Fails unless `address` is a multiple of `alignment`.
#[inline]
pub(crate) fn check_aligned(space: &str, address: u64, alignment: u32) -> Checked {
    if address.is_multiple_of(u64::from(alignment)) {
        return Ok(());
    }
    Err(Fault::new(
        Cause::Misaligned,
        format!(
            "{space} address ends in {:#x}, which is not a multiple of {alignment}",
            address % 256
        ),
    ))
}

/// An address's site, kept as an integer so that it can be atomic.
pub(crate) fn site_bits(site: Site) -> u64 {
    std::ptr::from_ref(site) as u64
}
