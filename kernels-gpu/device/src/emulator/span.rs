//! Bytes of a buffer: loads, stores, and what of them was written.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use bytemuck::Pod;

use crate::emulator::memory::{Buffer, address_of};
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::shadow::GRANULE;

/// Bytes of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Span<'m> {
    pub(crate) buffer: &'m Buffer,
    pub(crate) index: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
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

    /// Device address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        address_of(self.index) + self.offset
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
