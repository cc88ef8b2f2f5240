//! Runs a block's threads in turns, as coroutines on one OS thread.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};

use crate::emulator::block::{Block, State, Waiting, enter};
use crate::emulator::grid::Grid;
use crate::emulator::report::{Cause, Fault, Report, lanes, ranges};
use crate::emulator::schedule::Step;

/// Stack of a thread. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 512 * 1024;

thread_local! {
    /// Stacks of threads that have exited.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// How far a block came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Running,
    Done,
}

/// A block and its coroutines.
pub(crate) struct Runner<'g> {
    /// Raw, since the running coroutine and the scheduler take turns in using it.
    block: *mut Block<'g>,
    threads: Vec<Option<Coroutine<(), (), (), DefaultStack>>>,
    /// Asynchronous operations take effect at one in so many turns.
    reluctance: u32,
}

impl<'g> Runner<'g> {
    /// Block number `linear` of `grid`, each thread about to run `kernel`.
    pub(crate) fn new(grid: &'g Grid<'g>, linear: u32, kernel: &'g (dyn Fn() + Sync)) -> Self {
        let mut block = Box::new(Block::new(grid, linear));
        // Some seeds finish copies at once, others only when somebody waits.
        let reluctance = 1 << block.random.below(12);
        let threads = block.threads.len();
        let block = Box::into_raw(block);
        Self {
            block,
            threads: (0..threads).map(|thread| Some(start(block, thread, kernel))).collect(),
            reluctance,
        }
    }

    /// Runs for about `turns` turns.
    pub(crate) fn run(&mut self, turns: u64) -> Result<Progress, Box<Report>> {
        enter(self.block);
        // A panic of the kernel comes through `resume`.
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..turns {
                if self.turn()? == Progress::Done {
                    return Ok(Progress::Done);
                }
            }
            Ok(Progress::Running)
        }));
        enter(std::ptr::null_mut());
        result.unwrap_or_else(|payload| Err(self.panicked(&*payload)))
    }

    fn turn(&mut self) -> Result<Progress, Box<Report>> {
        // SAFETY: no coroutine runs.
        let block = unsafe { &mut *self.block };
        let scheduled = |block: &Block<'_>, fault: Fault| block.describe(fault, None, None);
        let chosen = match block.replayed() {
            Some(Step::Land { kind, index }) => {
                let landed = block.land(kind, index);
                return match landed.map_err(|fault| scheduled(block, *fault))? {
                    true => Ok(Progress::Running),
                    false => Err(scheduled(block, *strays())),
                };
            }
            Some(Step::Run { thread }) if block.take(thread) => Some(thread),
            Some(Step::Run { .. }) => return Err(scheduled(block, *strays())),
            None => {
                if block.in_flight() && block.random.one_in(self.reluctance) {
                    block.land_one().map_err(|fault| scheduled(block, *fault))?;
                }
                block.choose()
            }
        };
        let Some(thread) = chosen else {
            if block.exited as usize == block.threads.len() {
                block.finish().map_err(|fault| scheduled(block, *fault))?;
                return Ok(Progress::Done);
            }
            if block.land_one().map_err(|fault| scheduled(block, *fault))? {
                return Ok(Progress::Running);
            }
            return Err(scheduled(block, *block.deadlock()));
        };
        block.current = thread;
        let coroutine = self.threads[thread as usize].as_mut().expect("exited threads do not wake");
        // Ends the scheduler's use of the block until the coroutine suspends or returns.
        let returned = matches!(coroutine.resume(()), CoroutineResult::Return(()));
        // SAFETY: the coroutine is suspended or gone.
        let block = unsafe { &mut *self.block };
        if let Some(report) = block.report.take() {
            return Err(report);
        }
        if returned {
            if let Some(coroutine) = self.threads[thread as usize].take() {
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
            }
            block.exit(thread).map_err(|fault| block.describe(*fault, Some(thread), None))?;
        }
        Ok(Progress::Running)
    }

    fn panicked(&self, payload: &(dyn std::any::Any + Send)) -> Box<Report> {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        // SAFETY: no coroutine runs.
        let block = unsafe { &*self.block };
        let fault = Fault::new(Cause::Panic, format!("the kernel panicked: {text}"));
        block.describe(*fault, Some(block.current), None)
    }
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        // Unwinding a suspended thread runs no kernel code that needs the block: kernels own nothing.
        self.threads.clear();
        // SAFETY: made by `Box::into_raw`, and no coroutine is left.
        drop(unsafe { Box::from_raw(self.block) });
    }
}

/// A schedule asks for what the kernel does not do.
fn strays() -> Box<Fault> {
    let text = "the schedule is of another kernel or launch: its next step cannot be taken";
    Fault::new(Cause::Schedule, text)
}

fn start<'g>(
    block: *mut Block<'g>,
    thread: usize,
    kernel: &'g (dyn Fn() + Sync),
) -> Coroutine<(), (), (), DefaultStack> {
    let stack = STACKS.with_borrow_mut(Vec::pop);
    let stack = stack
        .unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a thread's stack"));
    let block: *mut Block<'static> = block.cast();
    // SAFETY: the runner drops the coroutine before `'g` ends.
    let kernel: &'static (dyn Fn() + Sync) = unsafe { std::mem::transmute(kernel) };
    Coroutine::with_stack(stack, move |yielder, ()| {
        // SAFETY: the scheduler holds no reference while a coroutine runs.
        unsafe { &mut *block }.threads[thread].yielder = yielder;
        kernel();
    })
}

impl Block<'_> {
    /// Says who waits where.
    pub(crate) fn deadlock(&self) -> Box<Fault> {
        let mut waits: Vec<(Waiting, String, Vec<u32>)> = Vec::new();
        let mut exited = Vec::new();
        for (index, thread) in (0..).zip(&self.threads) {
            match thread.state {
                State::Exited => exited.push(index),
                State::Ready => {}
                State::Waiting(waiting) => {
                    let site = thread.site.map(ToString::to_string).unwrap_or_default();
                    match waits.iter_mut().find(|(w, s, _)| *w == waiting && *s == site) {
                        Some((_, _, threads)) => threads.push(index),
                        None => waits.push((waiting, site, vec![index])),
                    }
                }
            }
        }
        let mut text = String::from("nothing can wake the threads that wait:");
        for (waiting, site, threads) in waits {
            let what = self.describe_wait(waiting, threads[0]);
            text += &format!("\n  threads {}: {what} at {site}", ranges(&threads));
        }
        if !exited.is_empty() {
            text += &format!("\n  threads {} have exited", ranges(&exited));
        }
        Fault::new(Cause::Deadlock, text)
    }

    fn describe_wait(&self, waiting: Waiting, thread: u32) -> String {
        match waiting {
            Waiting::Lanes(name) => {
                let warp = thread / 32;
                let missing = lanes(self.warps[warp as usize].missing(thread % 32));
                format!("in {name}, for lanes {missing} of warp {warp}")
            }
            Waiting::Barrier(id) => self.barriers[id as usize].describe(id),
            Waiting::Mbarrier { address, parity } => self.describe_mbarrier(address, parity),
            Waiting::Registers(count) => self.registers.describe(count),
            Waiting::Polling(name) => format!("polling with {name}"),
        }
    }
}
