//! Atomics on global memory, which order memory between blocks.

use std::panic::Location;
use std::sync::atomic::Ordering::Relaxed;

use crate::emulator::block::{Block, instruction, suspend};
use crate::emulator::report::Checked;
use crate::emulator::span::{Span, check_aligned};

/// `atom.add.acq_rel.gpu`.
#[track_caller]
pub fn add_acq_rel(address: *mut u32, value: u32) -> u32 {
    instruction(Location::caller(), |block| {
        let span = block.atomic_span(address)?;
        let (grid, linear) = (block.grid, block.linear);
        let view = &mut block.threads[block.current as usize].view;
        let before = grid.acquire_release(address as u64, linear, view, || {
            span.atomic().fetch_add(value, Relaxed)
        });
        grid.note_progress();
        Ok(before)
    })
}

/// `red.add.release.gpu`.
#[track_caller]
pub fn add_release(address: *mut u32, value: u32) {
    instruction(Location::caller(), |block| {
        let span = block.atomic_span(address)?;
        let (grid, linear) = (block.grid, block.linear);
        let view = &mut block.threads[block.current as usize].view;
        grid.release(address as u64, linear, view, false, || {
            span.atomic().fetch_add(value, Relaxed);
        });
        grid.note_progress();
        Ok(())
    });
}

/// `st.release.gpu`.
#[track_caller]
pub fn store_release(address: *mut u32, value: u32) {
    instruction(Location::caller(), |block| {
        let span = block.writable_atomic_span(address)?;
        let (grid, linear) = (block.grid, block.linear);
        let view = &mut block.threads[block.current as usize].view;
        grid.release(address as u64, linear, view, true, || {
            span.atomic().store(value, Relaxed);
        });
        span.mark_written();
        grid.note_progress();
        Ok(())
    });
}

/// `ld.acquire.gpu`. Others run after it, since it mostly stands in a loop.
#[track_caller]
pub fn load_acquire(address: *const u32) -> u32 {
    let site = Location::caller();
    let value = instruction(site, |block| {
        let span = block.readable_atomic_span(address)?;
        let (grid, linear) = (block.grid, block.linear);
        let view = &mut block.threads[block.current as usize].view;
        let value = grid.acquire(address as u64, linear, view, || span.atomic().load(Relaxed));
        block.poll("ld.acquire", site)?;
        Ok(value)
    });
    suspend();
    value
}

impl<'g> Block<'g> {
    fn readable_atomic_span(&self, address: *const u32) -> Checked<Span<'g>> {
        check_aligned("global", address as u64, 4)?;
        let span = self.grid.memory.span(address as u64, 4)?;
        span.check_written()?;
        self.check_dependencies(&span)?;
        Ok(span)
    }

    fn writable_atomic_span(&self, address: *const u32) -> Checked<Span<'g>> {
        check_aligned("global", address as u64, 4)?;
        let span = self.grid.memory.span(address as u64, 4)?;
        span.check_writable()?;
        Ok(span)
    }

    fn atomic_span(&self, address: *const u32) -> Checked<Span<'g>> {
        let span = self.readable_atomic_span(address)?;
        span.check_writable()?;
        Ok(span)
    }
}
