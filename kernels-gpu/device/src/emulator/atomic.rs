//! Atomics on global memory, which order memory between blocks.

use std::panic::Location;

use bytemuck::Pod;

use crate::emulator::block::{Block, instruction, suspend};
use crate::emulator::grid::Synchronisation;
use crate::emulator::report::{Checked, Site};
use crate::emulator::shadow::Access;
use crate::emulator::span::{Span, check_aligned};
use crate::ordering::{Order, Scope};

/// `atom`: replaces the value by what `new` makes of it, if anything; what was there before.
#[track_caller]
pub fn update<T: Pod + PartialEq>(
    name: &'static str,
    address: *mut T,
    order: Order,
    scope: Scope,
    new: impl FnOnce(T) -> Option<T>,
) -> T {
    let site = Location::caller();
    let (before, changed) = instruction(site, |block| {
        let span = block.atomic_span(address, true)?;
        block.check_dependencies(&span, "reads")?;
        span.check_writable()?;
        let synchronisation = Synchronisation { order, scope, reads: true, keeps: true };
        let (before, changed) = block.synchronise(&span, site, synchronisation, || {
            let before: T = span.load_value();
            let after = new(before);
            if let Some(after) = &after {
                span.store(bytemuck::bytes_of(after));
            }
            ((before, after.is_some_and(|after| after != before)), after.is_some())
        })?;
        if changed {
            block.grid.note_progress();
        } else {
            // Mostly it stands in a loop, as a lock's.
            block.poll(name, site)?;
        }
        Ok((before, changed))
    });
    if !changed {
        suspend();
    }
    before
}

/// `ld.relaxed` or `ld.acquire`. Others run after it, since it mostly stands in a loop.
#[track_caller]
pub fn load(name: &'static str, address: *const u32, order: Order, scope: Scope) -> u32 {
    let site = Location::caller();
    let value = instruction(site, |block| {
        let span = block.atomic_span(address, true)?;
        block.check_dependencies(&span, "reads")?;
        let synchronisation = Synchronisation { order, scope, reads: true, keeps: true };
        let value =
            block.synchronise(&span, site, synchronisation, || (span.load_value(), false))?;
        block.poll(name, site)?;
        Ok(value)
    });
    suspend();
    value
}

/// `st.relaxed` or `st.release`.
#[track_caller]
pub fn store(address: *mut u32, value: u32, order: Order, scope: Scope) {
    let site = Location::caller();
    instruction(site, |block| {
        let span = block.atomic_span(address, false)?;
        block.check_dependencies(&span, "writes")?;
        span.check_writable()?;
        let synchronisation = Synchronisation { order, scope, reads: false, keeps: false };
        block.synchronise(&span, site, synchronisation, || {
            span.store(bytemuck::bytes_of(&value));
            ((), true)
        })?;
        block.grid.note_progress();
        Ok(())
    });
}

/// `fence.acq_rel`.
#[track_caller]
pub fn fence(scope: Scope) {
    instruction(Location::caller(), |block| {
        let linear = block.linear;
        block.thread().view.fence(linear, scope);
        Ok(())
    });
}

impl<'g> Block<'g> {
    fn atomic_span<T>(&self, address: *const T, is_read: bool) -> Checked<Span<'g>> {
        let bytes = size_of::<T>() as u32;
        check_aligned("global", address as u64, bytes)?;
        let span = self.grid.memory.span(address as u64, bytes)?;
        if is_read {
            span.check_written()?;
        }
        Ok(span)
    }

    /// Runs `operation` as an atomic one of the running thread's.
    fn synchronise<R>(
        &mut self,
        span: &Span<'_>,
        site: Site,
        synchronisation: Synchronisation,
        operation: impl FnOnce() -> (R, bool),
    ) -> Checked<R> {
        let (grid, linear) = (self.grid, self.linear);
        let view = &mut self.threads[self.current as usize].view;
        let now = view.clone();
        let access = Access::generic(&now, site);
        grid.atomic(span, linear, view, &access, synchronisation, operation)
    }
}
