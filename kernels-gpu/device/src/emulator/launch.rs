//! Launches a kernel on the emulator.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use crate::emulator::block::Block;
use crate::emulator::grid::Grid;
use crate::emulator::memory::Memory;
use crate::emulator::random::Random;
use crate::emulator::register::FILE;
use crate::emulator::report::Report;
use crate::emulator::schedule::Schedule;
use crate::emulator::scheduler::{Progress, Runner};

/// Most shared memory of a block, in bytes: an H100's.
const SHARED_LIMIT: u32 = 227 * 1024;

/// Turns a block gets before another's may come, if blocks take turns.
const TURNS: u32 = 256;

/// How a kernel is launched: grid, block, shared memory, seed.
#[derive(Clone, Debug)]
#[must_use]
pub struct Launch {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) registers: Option<u32>,
    pub(crate) seed: u64,
    pub(crate) dependent: bool,
    pub(crate) poison_matrix_reads: bool,
    resident: Option<u32>,
    pub(crate) record: bool,
    pub(crate) replay: Option<Schedule>,
}

impl Launch {
    /// `blocks` thread blocks (x, y, z) of `threads` threads.
    ///
    /// # Panics
    /// If there is no block, more than 2^20, or `threads` is not a multiple of 32 up to 1024.
    pub fn new(blocks: [u32; 3], threads: u32) -> Self {
        let count: u64 = blocks.iter().map(|n| u64::from(*n)).product();
        assert!((1..1 << 20).contains(&count), "{count} blocks");
        assert!(
            threads > 0 && threads.is_multiple_of(32) && threads <= 1024,
            "a block of {threads} threads"
        );
        Self {
            blocks,
            threads,
            shared_bytes: 0,
            registers: None,
            seed: 0,
            dependent: false,
            poison_matrix_reads: false,
            resident: None,
            record: false,
            replay: None,
        }
    }

    /// Dynamic shared memory of a block, in bytes.
    ///
    /// # Panics
    /// If no device has so much.
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        assert!(bytes <= SHARED_LIMIT, "{bytes} bytes of shared memory");
        self.shared_bytes = bytes;
        self
    }

    /// Registers of a thread when the kernel starts, as it was compiled: what `setmaxnreg` deals out among
    /// the block's warpgroups is this by the number of threads. If it is not said, it is the most that a block
    /// of so many threads can have.
    ///
    /// # Panics
    /// If it is no multiple of 8 from 24 to 248, or the block has more than a multiprocessor's 65,536.
    pub fn registers(mut self, count: u32) -> Self {
        assert!(
            (24..=248).contains(&count) && count.is_multiple_of(8),
            "{count} registers a thread"
        );
        let all = count * self.threads;
        assert!(all <= FILE, "{all} registers of a block, of at most {FILE}");
        self.registers = Some(count);
        self
    }

    /// What is left to chance, this decides: the order of threads and blocks, and when asynchronous
    /// operations take effect.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The kernel is launched before those it depends on are complete (programmatic dependent launch):
    /// it may read what they write only after `wait_dependencies`.
    pub fn dependent(mut self) -> Self {
        self.dependent = true;
        self
    }

    /// `ldmatrix` and `wgmma` may read shared memory that nothing has written, and get NaNs there. For a
    /// kernel that multiplies whole tiles and drops what lies beyond its tokens: what it fails to drop
    /// shows in its results.
    pub fn poison_matrix_reads(mut self) -> Self {
        self.poison_matrix_reads = true;
        self
    }

    /// `blocks` blocks take turns, on one OS thread, so that they can wait for each other; the next
    /// starts when one ends. Otherwise blocks run side by side, each to its end.
    ///
    /// # Panics
    /// If `blocks` is 0.
    pub fn resident(mut self, blocks: u32) -> Self {
        assert!(blocks > 0, "no resident block");
        self.resident = Some(blocks);
        self
    }

    /// Runs one block as `schedule` says, and what comes after it, and the other blocks, by its seed.
    pub fn replay(mut self, schedule: Schedule) -> Self {
        self.seed = schedule.seed;
        self.replay = Some(schedule);
        self
    }

    /// Lets `launch` run this launch under each of the seeds, in memory that it makes anew each time, until it
    /// fails. Then the seed is run once more, and the report tells its [`Report::schedule`].
    ///
    /// # Errors
    /// The report of the first seed that fails.
    pub fn for_seeds(
        self,
        seeds: Range<u64>,
        mut launch: impl FnMut(Self) -> Result<(), Box<Report>>,
    ) -> Result<(), Box<Report>> {
        for seed in seeds {
            let seeded = self.clone().seed(seed);
            if let Err(report) = launch(seeded.clone()) {
                let recorded = Self { record: true, ..seeded };
                // Blocks that race with each other on the CPU may come another way.
                return Err(launch(recorded).err().unwrap_or(report));
            }
        }
        Ok(())
    }

    /// Runs `kernel` as every thread of the grid.
    ///
    /// # Errors
    /// The kernel's first mistake: of blocks that ran side by side, the lowest-numbered one's.
    pub fn run(self, memory: &mut Memory, kernel: impl Fn() + Sync) -> Result<(), Box<Report>> {
        let grid = Grid::new(memory, &self);
        let count = self.blocks.iter().product::<u32>();
        match self.resident {
            Some(resident) => take_turns(&grid, count, resident, &kernel),
            None => {
                let alone = |block| Runner::new(&grid, block, &kernel).run(u64::MAX).err();
                let reports = (0..count).into_par_iter().filter_map(alone);
                reports
                    .min_by_key(|report| {
                        report.block.map(u64::from).into_iter().rev().collect::<Vec<_>>()
                    })
                    .map_or(Ok(()), Err)
            }
        }
    }
}

/// Runs `resident` blocks at a time, in an order the seed decides.
fn take_turns(
    grid: &Grid<'_>,
    count: u32,
    resident: u32,
    kernel: &(dyn Fn() + Sync),
) -> Result<(), Box<Report>> {
    let mut random = Random::new(grid.seed, u32::MAX);
    let mut waiting = 0..count;
    let mut running: Vec<Runner<'_>> = Vec::new();
    loop {
        while running.len() < resident as usize
            && let Some(block) = waiting.next()
        {
            running.push(Runner::new(grid, block, kernel));
        }
        if running.is_empty() {
            return Ok(());
        }
        let index = random.below(running.len() as u32) as usize;
        let turns = 1 + random.below(TURNS);
        if running[index].run(turns.into())? == Progress::Done {
            running.swap_remove(index);
        }
    }
}

impl fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("index", &self.index).finish_non_exhaustive()
    }
}
