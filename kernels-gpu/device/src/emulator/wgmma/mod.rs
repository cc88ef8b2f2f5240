//! Warpgroup matrix multiplication (`wgmma`): asynchronous, operands in shared memory.
//!
//! A warp's part of a multiplication, 16 rows, is computed some time between its issue and the wait that
//! covers it. Meanwhile the kernel's accumulators hold a mark instead of numbers; `settle` puts the
//! numbers in their place. So whoever reads them too early reads a NaN, and is reported where it is
//! computed with or stored.

mod agreement;
mod compute;
mod queue;

use std::panic::Location;

use crate::emulator::block::Block;
use crate::emulator::report::{Cause, Fault};
use crate::emulator::warp::{Outcome, collective};

pub(crate) use agreement::Agreement;
use queue::position;
pub(crate) use queue::{WarpQueue, settled};

/// `A` of `d += a * b`.
#[derive(Clone, Copy, Debug)]
pub enum A<'r> {
    /// In shared memory.
    Shared {
        /// Matrix descriptor of the first 16 of K.
        descriptor: u64,
        /// Bytes to the next 16 of K.
        step_bytes: u32,
        /// MN-major.
        transposed: bool,
    },
    /// Each step's fragments, as `mma.m16n8k16` takes them.
    Registers(&'r [[u32; 4]]),
}

/// `B` of `d += a * b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct B {
    /// Matrix descriptor of the first 16 of K.
    pub descriptor: u64,
    /// Bytes to the next 16 of K.
    pub step_bytes: u32,
    /// MN-major.
    pub transposed: bool,
}

/// Sizes and types of `d += a * b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Columns of `b` and `d`.
    pub n: u32,
    /// K is 16 times this.
    pub steps: u32,
    /// bf16, or else f16.
    pub bf16: bool,
    /// Add to `d`, or else replace it.
    pub accumulate: bool,
}

type Key = (Option<(u64, u32, bool)>, B, Shape);

/// A lane's operands.
struct Operands {
    d: *mut f32,
    a: Option<Vec<[u32; 4]>>,
    key: Key,
}

/// `wgmma.fence`.
#[track_caller]
pub fn fence() {
    collective("wgmma.fence", Location::caller(), &mut (), |block, _| {
        block.queue().fenced = true;
        Ok(Outcome::Go)
    });
}

/// `wgmma.commit_group`.
#[track_caller]
pub fn commit_group() {
    collective("wgmma.commit_group", Location::caller(), &mut (), |block, _| {
        let queue = block.queue();
        queue.groups.push(queue.issued);
        Ok(Outcome::Go)
    });
}

/// `wgmma.wait_group`.
#[track_caller]
pub fn wait_group(pending: u32) {
    collective("wgmma.wait_group", Location::caller(), &mut (), |block, _| {
        let warp = block.current / 32;
        let queue = block.queue();
        let covered = queue.groups.len().saturating_sub(pending as usize);
        let until = covered.checked_sub(1).map_or(0, |last| queue.groups[last]);
        queue.waited = queue.waited.max(until);
        queue.fenced = false;
        while block.queue().pending.front().is_some_and(|next| next.epoch <= until) {
            block.compute_next(warp)?;
        }
        let agent = block.agents.wgmma(warp);
        for thread in Block::warp_threads(warp) {
            block.threads[thread as usize].view.learn(agent, until);
        }
        Ok(Outcome::Go)
    });
}

/// Puts the results where `d` is; all multiplications into it must have been waited for.
#[track_caller]
pub fn settle(d: &mut [f32]) {
    let n = 2 * d.len() as u32;
    let mut operands = d.as_mut_ptr();
    collective("wgmma settle", Location::caller(), &mut operands, |block, lanes| {
        let queue = block.queue();
        let Some(index) = queue.find(lanes, n)? else {
            return Ok(Outcome::Go);
        };
        let (epoch, site) = queue.accumulators[index].latest;
        if epoch > queue.waited {
            let text =
                format!("accumulators are read before a wait_group covers the wgmma at {site}");
            return Err(Fault::new(Cause::Unwaited, text));
        }
        let tile = queue.accumulators.swap_remove(index);
        for (lane, d) in lanes.iter().enumerate() {
            for i in 0..n as usize / 2 {
                // SAFETY: the lane is suspended here, with `n / 2` accumulators at `d`.
                unsafe { *d.add(i) = tile.values[position(n, lane, i)] };
            }
        }
        Ok(Outcome::Go)
    });
}

/// `wgmma.mma_async`, `shape.steps` of them: starts `d (+)= a * b`.
#[track_caller]
pub fn mma(d: &mut [f32], a: A<'_>, b: B, shape: Shape) {
    let site = Location::caller();
    let (in_registers, in_shared) = match a {
        A::Registers(steps) => (Some(steps.to_vec()), None),
        A::Shared { descriptor, step_bytes, transposed } => {
            (None, Some((descriptor, step_bytes, transposed)))
        }
    };
    let mut operands = Operands { d: d.as_mut_ptr(), a: in_registers, key: (in_shared, b, shape) };
    collective("wgmma", site, &mut operands, |block, lanes| {
        let key = lanes[0].key;
        if lanes.iter().any(|lane| lane.key != key) {
            return Err(Fault::new(
                Cause::Divergence,
                "lanes of a warp differ in wgmma's operands",
            ));
        }
        block.agree(site, key)?;
        block.issue(lanes, site)?;
        Ok(Outcome::Go)
    });
}
