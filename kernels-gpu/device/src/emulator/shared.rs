//! A block's shared memory.

use std::panic::Location;

use bytemuck::Pod;

use crate::emulator::block::{Block, instruction};
use crate::emulator::memory::POISON;
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::shadow::{Access, Shadow};
use crate::emulator::span::check_aligned;

/// Address of dynamic shared memory: the system keeps what is below, as on the hardware.
pub(crate) const BASE: u32 = 1024;

/// Bytes and their records.
pub(crate) struct SharedMemory {
    bytes: Vec<u8>,
    pub(crate) shadow: Shadow,
}

impl SharedMemory {
    pub(crate) fn new(bytes: u32) -> Self {
        Self { bytes: vec![POISON; bytes as usize], shadow: Shadow::new(bytes) }
    }

    /// Offset of `bytes` at `address`, checked against bounds.
    #[inline]
    pub(crate) fn offset(&self, address: u32, bytes: u32) -> Checked<u32> {
        let offset = u64::from(address).wrapping_sub(u64::from(BASE));
        if offset < self.bytes.len() as u64 && offset + u64::from(bytes) <= self.bytes.len() as u64
        {
            return Ok(offset as u32);
        }
        Err(Fault::new(
            Cause::OutOfBounds,
            format!(
                "accesses {bytes} bytes of shared memory at {:+#x}, of {:#x}",
                offset as i64,
                self.bytes.len()
            ),
        ))
    }

    #[inline]
    pub(crate) fn bytes(&self, offset: u32, bytes: u32) -> &[u8] {
        &self.bytes[offset as usize..(offset + bytes) as usize]
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self, offset: u32, bytes: u32) -> &mut [u8] {
        &mut self.bytes[offset as usize..(offset + bytes) as usize]
    }
}

/// Address of the block's dynamic shared memory.
pub fn dynamic_base() -> u32 {
    BASE
}

/// Loads a value; its size is its alignment.
#[inline]
#[track_caller]
pub fn load<T: Pod>(address: u32) -> T {
    let site = Location::caller();
    instruction(site, |block| {
        let bytes = size_of::<T>() as u32;
        check_aligned("shared", address.into(), bytes)?;
        block
            .read_shared(block.current, address, bytes, false, site)
            .map(bytemuck::pod_read_unaligned)
    })
}

/// Stores a value; its size is its alignment.
#[inline]
#[track_caller]
pub fn store<T: Pod>(address: u32, value: T) {
    let site = Location::caller();
    instruction(site, |block| {
        check_aligned("shared", address.into(), size_of::<T>() as u32)?;
        block.write_shared(block.current, address, bytemuck::bytes_of(&value), site)
    });
}

impl Block<'_> {
    /// A thread's ordinary read.
    #[inline]
    pub(crate) fn read_shared(
        &mut self,
        thread: u32,
        address: u32,
        bytes: u32,
        poison: bool,
        site: Site,
    ) -> Checked<&[u8]> {
        let offset = self.shared.offset(address, bytes)?;
        let access =
            Access { poison, ..Access::generic(&self.threads[thread as usize].view, site) };
        self.shared.shadow.read(offset, bytes, &access, &self.agents)?;
        Ok(self.shared.bytes(offset, bytes))
    }

    /// A thread's ordinary write.
    #[inline]
    pub(crate) fn write_shared(
        &mut self,
        thread: u32,
        address: u32,
        value: &[u8],
        site: Site,
    ) -> Checked {
        let bytes = value.len() as u32;
        let offset = self.shared.offset(address, bytes)?;
        let access = Access::generic(&self.threads[thread as usize].view, site);
        self.shared.shadow.write(offset, bytes, &access, &self.agents)?;
        self.shared.bytes_mut(offset, bytes).copy_from_slice(value);
        Ok(())
    }
}
