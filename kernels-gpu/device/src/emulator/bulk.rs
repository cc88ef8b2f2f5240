//! Bulk copies by the async proxy (`cp.async.bulk`): they land some time after they are issued.

use std::panic::Location;

use crate::emulator::block::{Block, instruction};
use crate::emulator::clock::{Agent, View};
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::shadow::Access;
use crate::emulator::span::check_aligned;

/// A copy under way, or one that has landed and has not been waited for.
pub(crate) struct BulkCopy {
    pub(crate) thread: u32,
    pub(crate) site: Site,
    direction: Direction,
    pieces: Vec<Piece>,
    /// The thread's view when it issued the copy.
    view: View,
    reads: (Agent, u32),
    writes: (Agent, u32),
    landed: bool,
}

/// Bytes that are neighbours on both sides.
pub(crate) struct Piece {
    pub(crate) shared: u32,
    /// Nothing outside of a tensor: zeros.
    pub(crate) global: Option<u64>,
    pub(crate) bytes: u32,
}

#[derive(Clone, Copy)]
enum Direction {
    ToShared { mbarrier: u32 },
    ToGlobal { group: u32 },
}

impl BulkCopy {
    pub(crate) fn is_to_shared(&self) -> bool {
        matches!(self.direction, Direction::ToShared { .. })
    }

    /// The group, if it is one of `thread`'s copies to global memory.
    fn group_of(&self, thread: u32) -> Option<u32> {
        match self.direction {
            Direction::ToGlobal { group } if self.thread == thread => Some(group),
            _ => None,
        }
    }
}

/// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`.
#[track_caller]
pub fn global_to_shared(destination: u32, source: *const u8, bytes: u32, mbarrier: u32) {
    let site = Location::caller();
    instruction(site, |block| {
        block.check_bulk_mbarrier(mbarrier)?;
        let span = block.grid.memory.span(source as u64, bytes)?;
        block.check_dependencies(&span, "reads")?;
        block.issue_bulk(destination, source as u64, bytes, Direction::ToShared { mbarrier }, site)
    });
}

/// `cp.async.bulk.prefetch.L2.global`: nothing changes, but the range has to be valid.
#[track_caller]
pub fn prefetch_l2(source: *const u8, bytes: u32) {
    instruction(Location::caller(), |block| {
        check_aligned("global", source as u64, 16)?;
        check_aligned("size of a prefetch as an", bytes.into(), 16)?;
        block.grid.memory.span(source as u64, bytes)?;
        Ok(())
    });
}

/// `cp.async.bulk.global.shared::cta.bulk_group`.
#[track_caller]
pub fn shared_to_global(destination: *mut u8, source: u32, bytes: u32) {
    let site = Location::caller();
    instruction(site, |block| {
        let group = block.thread().bulk_groups;
        let span = block.grid.memory.span(destination as u64, bytes)?;
        span.check_writable()?;
        block.check_dependencies(&span, "writes")?;
        block.issue_bulk(source, destination as u64, bytes, Direction::ToGlobal { group }, site)
    });
}

/// `cp.async.bulk.commit_group`.
#[track_caller]
pub fn commit_group() {
    instruction(Location::caller(), |block| {
        block.thread().bulk_groups += 1;
        Ok(())
    });
}

/// `cp.async.bulk.wait_group`.
#[track_caller]
pub fn wait_group(pending: u32) {
    instruction(Location::caller(), |block| block.wait_bulk(pending, true));
}

/// `cp.async.bulk.wait_group.read`.
#[track_caller]
pub fn wait_group_read(pending: u32) {
    instruction(Location::caller(), |block| block.wait_bulk(pending, false));
}

impl Block<'_> {
    fn issue_bulk(
        &mut self,
        shared: u32,
        global: u64,
        bytes: u32,
        direction: Direction,
        site: Site,
    ) -> Checked {
        check_aligned("shared", shared.into(), 16)?;
        check_aligned("global", global, 16)?;
        check_aligned("size of a copy as an", bytes.into(), 16)?;
        if bytes == 0 {
            return Err(Fault::new(Cause::Operand, "a bulk copy of 0 bytes"));
        }
        self.shared.offset(shared, bytes)?;
        self.push_bulk(vec![Piece { shared, global: Some(global), bytes }], direction, site);
        Ok(())
    }

    /// Issues a copy of such pieces to shared memory, whose bytes the barrier counts.
    pub(crate) fn issue_pieces(&mut self, pieces: Vec<Piece>, mbarrier: u32, site: Site) {
        self.push_bulk(pieces, Direction::ToShared { mbarrier }, site);
    }

    fn push_bulk(&mut self, pieces: Vec<Piece>, direction: Direction, site: Site) {
        let (reads, writes) = (self.agents.bulk(), self.agents.bulk());
        self.bulk.push(BulkCopy {
            thread: self.current,
            site,
            direction,
            pieces,
            view: self.threads[self.current as usize].view.fork(),
            reads,
            writes,
            landed: false,
        });
    }

    /// Copies under way.
    pub(crate) fn flying_bulk(&self) -> u32 {
        self.bulk.iter().filter(|copy| !copy.landed).count() as u32
    }

    /// Lets one of the copies under way land.
    pub(crate) fn land_flying_bulk(&mut self, chosen: u32) -> Checked {
        let mut flying = (0..self.bulk.len()).filter(|i| !self.bulk[*i].landed);
        let index = flying.nth(chosen as usize).expect("it was counted");
        self.land_bulk(index)
    }

    fn land_bulk(&mut self, index: usize) -> Checked {
        let copy = &self.bulk[index];
        let (thread, site) = (copy.thread, copy.site);
        match copy.direction {
            Direction::ToShared { mbarrier } => {
                let copy = self.bulk.swap_remove(index);
                self.land_in_shared(&copy).map_err(|fault| fault.by(thread, site))?;
                let (agent, epoch) = copy.writes;
                self.complete_bytes(mbarrier, copy.bytes(), agent, epoch)
                    .map_err(|fault| fault.by(thread, site))
            }
            Direction::ToGlobal { .. } => {
                self.bulk[index].landed = true;
                self.land_in_global(index).map_err(|fault| fault.by(thread, site))
            }
        }
    }

    fn land_in_shared(&mut self, copy: &BulkCopy) -> Checked {
        for piece in &copy.pieces {
            let offset = self.shared.offset(piece.shared, piece.bytes)?;
            let writes = copy.access(copy.writes);
            let Some(from) = piece.global else {
                self.shared.shadow.write(offset, piece.bytes, &writes, &self.agents)?;
                self.shared.bytes_mut(offset, piece.bytes).fill(0);
                continue;
            };
            let span = self.grid.memory.span(from, piece.bytes)?;
            self.grid.read(&span, self.linear, &copy.access(copy.reads))?;
            self.shared.shadow.write(offset, piece.bytes, &writes, &self.agents)?;
            span.load(self.shared.bytes_mut(offset, piece.bytes));
        }
        Ok(())
    }

    fn land_in_global(&mut self, index: usize) -> Checked {
        let copy = &self.bulk[index];
        for piece in &copy.pieces {
            let offset = self.shared.offset(piece.shared, piece.bytes)?;
            let reads = copy.access(copy.reads);
            self.shared.shadow.read(offset, piece.bytes, &reads, &self.agents)?;
            let to = piece.global.expect("copies to global memory have a place there");
            let span = self.grid.memory.span(to, piece.bytes)?;
            self.grid.write(&span, self.linear, &copy.access(copy.writes))?;
            span.store(self.shared.bytes(offset, piece.bytes));
        }
        Ok(())
    }

    /// Waits for the running thread's groups but the latest `pending`: for their reads, or for all.
    fn wait_bulk(&mut self, pending: u32, all: bool) -> Checked {
        let thread = self.current;
        let before = self.thread().bulk_groups.saturating_sub(pending);
        let covered = |copy: &BulkCopy| copy.group_of(thread).is_some_and(|group| group < before);
        for index in 0..self.bulk.len() {
            if covered(&self.bulk[index]) && !self.bulk[index].landed {
                self.land_bulk(index)?;
            }
        }
        let view = &mut self.threads[thread as usize].view;
        for copy in self.bulk.iter().filter(|copy| covered(copy)) {
            view.learn(copy.reads.0, copy.reads.1);
            if all {
                view.learn(copy.writes.0, copy.writes.1);
            }
        }
        if all {
            self.bulk.retain(|copy| !covered(copy));
        }
        Ok(())
    }

    /// An exiting thread must have waited until its copies have read shared memory.
    pub(crate) fn check_bulk_waited(&mut self, thread: u32) -> Checked {
        let view = &self.threads[thread as usize].view;
        let unread = |copy: &&BulkCopy| {
            copy.group_of(thread).is_some() && !view.sees(copy.reads.0, copy.reads.1)
        };
        if let Some(copy) = self.bulk.iter().find(unread) {
            return Err(Fault::new(
                Cause::Unwaited,
                "the thread exits without having waited for its bulk copy from shared memory",
            )
            .by(thread, copy.site));
        }
        // What they write is complete when the kernel is.
        for index in 0..self.bulk.len() {
            if self.bulk[index].group_of(thread).is_some() && !self.bulk[index].landed {
                self.land_bulk(index)?;
            }
        }
        self.bulk.retain(|copy| copy.group_of(thread).is_none());
        Ok(())
    }
}

impl BulkCopy {
    fn bytes(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    fn access(&self, (agent, epoch): (Agent, u32)) -> Access<'_> {
        Access {
            agent,
            epoch,
            view: &self.view,
            asynchronous: true,
            poison: false,
            site: self.site,
        }
    }
}
