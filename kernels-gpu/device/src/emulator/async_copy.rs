//! Asynchronous copies of 16 bytes (`cp.async`): they land some time after they are issued.

use std::panic::Location;

use crate::emulator::block::{Block, instruction};
use crate::emulator::clock::View;
use crate::emulator::report::{Checked, Site};
use crate::emulator::shadow::Access;
use crate::emulator::span::check_aligned;

const BYTES: u32 = 16;

/// A copy under way.
pub(crate) struct AsyncCopy {
    pub(crate) thread: u32,
    pub(crate) site: Site,
    group: u32,
    destination: u32,
    source: u64,
    /// The thread's view when it issued the copy.
    view: View,
}

/// `cp.async.cg.shared.global` of 16 bytes.
#[track_caller]
pub fn copy_16(destination: u32, source: *const u8) {
    let site = Location::caller();
    instruction(site, |block| {
        check_aligned("shared", destination.into(), BYTES)?;
        check_aligned("global", source as u64, BYTES)?;
        block.shared.offset(destination, BYTES)?;
        let span = block.grid.memory.span(source as u64, BYTES)?;
        block.check_dependencies(&span, "reads")?;
        let thread = block.current;
        let copy = AsyncCopy {
            thread,
            site,
            group: block.thread().copy_groups,
            destination,
            source: source as u64,
            view: block.thread().view.fork(),
        };
        block.copies.push(copy);
        Ok(())
    });
}

/// `cp.async.commit_group`.
#[track_caller]
pub fn commit_group() {
    instruction(Location::caller(), |block| {
        block.thread().copy_groups += 1;
        Ok(())
    });
}

/// `cp.async.wait_group`.
#[track_caller]
pub fn wait_group(pending: u32) {
    instruction(Location::caller(), |block| {
        let thread = block.current;
        let before = block.thread().copy_groups.saturating_sub(pending);
        let mut index = 0;
        while index < block.copies.len() {
            let copy = &block.copies[index];
            if copy.thread == thread && copy.group < before {
                block.land_copy(index)?;
            } else {
                index += 1;
            }
        }
        let agent = block.agents.async_copy(thread);
        // Group g is the agent's epoch g + 1.
        block.thread().view.learn(agent, before);
        Ok(())
    });
}

impl Block<'_> {
    /// Lets a copy land.
    pub(crate) fn land_copy(&mut self, index: usize) -> Checked {
        let copy = self.copies.swap_remove(index);
        self.perform_copy(&copy).map_err(|fault| fault.by(copy.thread, copy.site))
    }

    fn perform_copy(&mut self, copy: &AsyncCopy) -> Checked {
        let access = Access {
            agent: self.agents.async_copy(copy.thread),
            epoch: copy.group + 1,
            view: &copy.view,
            asynchronous: false,
            poison: false,
            site: copy.site,
        };
        let span = self.grid.memory.span(copy.source, BYTES)?;
        self.grid.read(&span, self.linear, &access)?;
        let offset = self.shared.offset(copy.destination, BYTES)?;
        self.shared.shadow.write(offset, BYTES, &access, &self.agents)?;
        span.load(self.shared.bytes_mut(offset, BYTES));
        Ok(())
    }
}
