//! Loads and stores of global memory.

use std::panic::Location;

use bytemuck::Pod;

use crate::emulator::block::{Block, instruction};
use crate::emulator::report::{Cause, Checked, Fault};
use crate::emulator::shadow::Access;
use crate::emulator::span::{Span, check_aligned};

/// Loads a value; its size is its alignment.
#[inline]
#[track_caller]
pub fn load<T: Pod>(address: *const T) -> T {
    let site = Location::caller();
    instruction(site, |block| {
        let bytes = size_of::<T>() as u32;
        check_aligned("global", address as u64, bytes)?;
        let span = block.grid.memory.span(address as u64, bytes)?;
        block.check_dependencies(&span, "reads")?;
        let access = Access::generic(&block.threads[block.current as usize].view, site);
        block.grid.read(&span, block.linear, &access)?;
        Ok(span.load_value())
    })
}

/// Stores a value; its size is its alignment.
#[inline]
#[track_caller]
pub fn store<T: Pod>(address: *mut T, value: T) {
    let site = Location::caller();
    instruction(site, |block| {
        let bytes = bytemuck::bytes_of(&value);
        check_aligned("global", address as u64, bytes.len() as u32)?;
        block.check_settled(bytes)?;
        let span = block.grid.memory.span(address as u64, bytes.len() as u32)?;
        block.check_dependencies(&span, "writes")?;
        let access = Access::generic(&block.threads[block.current as usize].view, site);
        block.grid.write(&span, block.linear, &access)?;
        span.store(bytes);
        Ok(())
    });
}

impl Block<'_> {
    /// In a dependent launch, what earlier kernels write may be read only after `wait_dependencies`; written as
    /// well, since they may still read it, or write it last.
    #[inline]
    pub(crate) fn check_dependencies(&self, span: &Span<'_>, verb: &str) -> Checked {
        let waited = || self.threads[self.current as usize].waited_dependencies;
        if self.grid.dependent && !span.is_constant() && !waited() {
            return Err(Fault::new(
                Cause::Unwaited,
                format!(
                    "{verb} buffer `{}` before wait_dependencies, while a kernel that uses it may still run",
                    span.buffer.name
                ),
            ));
        }
        Ok(())
    }
}
