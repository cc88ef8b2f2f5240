//! A warp's multiplications under way, and the accumulators they go into.

use std::collections::VecDeque;
use std::panic::Location;

use super::{B, Operands, Shape};
use crate::emulator::block::{Block, instruction};
use crate::emulator::clock::View;
use crate::emulator::report::{Cause, Checked, Fault, Site};

/// High half of a mark; the low half is the accumulators' number. Arithmetic sets [`QUIET`].
const MARK: u32 = 0x7fa5_0000;
const QUIET: u32 = 1 << 22;

/// What a warp has multiplied and not settled.
#[derive(Default)]
pub(crate) struct WarpQueue {
    pub(super) pending: VecDeque<Multiplication>,
    pub(super) accumulators: Vec<AccumulatorTile>,
    pub(super) next_tile: u16,
    /// Multiplications issued so far: the latest one's epoch.
    pub(super) issued: u32,
    /// Groups closed so far: the epoch each ends with.
    pub(super) groups: Vec<u32>,
    /// Latest epoch waited for.
    pub(super) waited: u32,
    pub(super) fenced: bool,
    /// Multiplications checked against the warpgroup's.
    pub(super) agreed: usize,
}

/// A multiplication that has been issued and not computed.
pub(super) struct Multiplication {
    pub(super) tile: u16,
    pub(super) epoch: u32,
    pub(super) a: Source,
    pub(super) b: B,
    pub(super) shape: Shape,
    pub(super) view: View,
    pub(super) thread: u32,
    pub(super) site: Site,
}

/// `a` while the multiplication waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    Shared {
        descriptor: u64,
        step_bytes: u32,
        transposed: bool,
    },
    /// Each step's fragments of all lanes.
    Registers(Vec<[[u32; 4]; 32]>),
}

/// A warp's 16 rows of accumulators, while the kernel's hold marks.
pub(super) struct AccumulatorTile {
    pub(super) number: u16,
    pub(super) n: u32,
    /// `[16][n]`.
    pub(super) values: Vec<f32>,
    /// Epoch and place of the latest multiplication into it.
    pub(super) latest: (u32, Site),
}

impl WarpQueue {
    /// The tile that the lanes' accumulators are marked with.
    pub(super) fn find(&self, lanes: &[&mut *mut f32; 32], n: u32) -> Checked<Option<usize>> {
        // SAFETY: each lane is suspended in a call that has accumulators here.
        let bits = lanes.each_ref().map(|d| unsafe { (***d).to_bits() });
        let number = |bits: u32| (bits & !0xffff == MARK).then_some(bits as u16);
        let Some(tile) = number(bits[0]) else {
            return Ok(None);
        };
        let index = self.accumulators.iter().position(|a| a.number == tile && a.n == n);
        match index {
            None => Ok(None),
            Some(index) if bits.iter().all(|lane| number(*lane) == Some(tile)) => Ok(Some(index)),
            _ => Err(Fault::new(
                Cause::Divergence,
                "lanes of a warp bring accumulators of different multiplications",
            )),
        }
    }

    /// Takes the lanes' accumulators and leaves marks; the new tile's index.
    fn take(&mut self, lanes: &[*mut f32; 32], n: u32, latest: (u32, Site)) -> usize {
        let number = self.next_tile;
        self.next_tile = self.next_tile.wrapping_add(1);
        let mut values = vec![0.0; 16 * n as usize];
        for (lane, d) in lanes.iter().enumerate() {
            for i in 0..n as usize / 2 {
                // SAFETY: the lane is suspended in a call that has `n / 2` accumulators at `d`.
                unsafe {
                    values[position(n, lane, i)] = *d.add(i);
                    *d.add(i) = f32::from_bits(MARK | u32::from(number));
                }
            }
        }
        self.accumulators.push(AccumulatorTile { number, n, values, latest });
        self.accumulators.len() - 1
    }
}

impl Block<'_> {
    /// The running warp's.
    pub(super) fn queue(&mut self) -> &mut WarpQueue {
        &mut self.warps[(self.current / 32) as usize].queue
    }

    pub(super) fn issue(&mut self, lanes: &mut [&mut Operands; 32], site: Site) -> Checked {
        let (shared, b, shape) = lanes[0].key;
        let (thread, view) = (self.current, self.thread().view.fork());
        let queue = self.queue();
        if !queue.fenced {
            let text = "wgmma without a wgmma.fence since the last wait_group";
            return Err(Fault::new(Cause::Unwaited, text));
        }
        queue.issued += 1;
        let epoch = queue.issued;
        let mut pointers = lanes.each_ref().map(|lane| lane.d);
        let known = queue.find(&pointers.each_mut(), shape.n)?;
        let index = known.unwrap_or_else(|| queue.take(&pointers, shape.n, (epoch, site)));
        queue.accumulators[index].latest = (epoch, site);
        let tile = queue.accumulators[index].number;
        let a = match shared {
            Some((descriptor, step_bytes, transposed)) => {
                Source::Shared { descriptor, step_bytes, transposed }
            }
            None => {
                let step = |step: usize| {
                    std::array::from_fn(|lane| lanes[lane].a.as_ref().map_or([0; 4], |a| a[step]))
                };
                Source::Registers((0..shape.steps as usize).map(step).collect())
            }
        };
        queue.pending.push_back(Multiplication { tile, epoch, a, b, shape, view, thread, site });
        Ok(())
    }

    pub(crate) fn wgmma_in_flight(&self) -> bool {
        self.warps.iter().any(|warp| !warp.queue.pending.is_empty())
    }

    /// Warps with multiplications under way.
    pub(crate) fn multiplying_warps(&self) -> impl Iterator<Item = u32> {
        let is_multiplying = |warp: &u32| !self.warps[*warp as usize].queue.pending.is_empty();
        (0..self.warps.len() as u32).filter(is_multiplying)
    }

    /// Computes a warp's next multiplication.
    pub(crate) fn compute_next(&mut self, warp: u32) -> Checked {
        let queue = &mut self.warps[warp as usize].queue;
        let Some(multiplication) = queue.pending.pop_front() else {
            return Ok(());
        };
        let find = |tile: &AccumulatorTile| tile.number == multiplication.tile;
        let Some(index) = queue.accumulators.iter().position(find) else {
            return Ok(());
        };
        let mut values = std::mem::take(&mut queue.accumulators[index].values);
        let (thread, site) = (multiplication.thread, multiplication.site);
        self.compute(warp, &multiplication, &mut values).map_err(|fault| fault.by(thread, site))?;
        self.warps[warp as usize].queue.accumulators[index].values = values;
        Ok(())
    }
}

/// Place in a `[16][n]` tile of a lane's accumulator `i` (PTX ISA, "wgmma" D fragment).
pub(super) fn position(n: u32, lane: usize, i: usize) -> usize {
    let row = lane / 4 + 8 * (i / 2 % 2);
    let column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    row * n as usize + column
}

/// A number that is not a mark of unsettled accumulators.
#[inline]
#[track_caller]
pub(crate) fn settled(x: f32) -> f32 {
    if mark(x.to_bits()).is_some() {
        instruction(Location::caller(), |block| block.check_settled(&x.to_ne_bytes()));
    }
    x
}

/// Number of the accumulators whose mark this is, or looks like.
#[inline]
fn mark(bits: u32) -> Option<u16> {
    ((bits | QUIET) & !0xffff == MARK | QUIET).then_some(bits as u16)
}

impl Block<'_> {
    /// Fails if a word of what the running thread stores is a mark of accumulators of its warp.
    #[inline]
    pub(crate) fn check_settled(&self, bytes: &[u8]) -> Checked {
        for word in bytes.chunks_exact(4) {
            if let Some(number) = mark(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])) {
                self.check_not_held(number)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn check_not_held(&self, number: u16) -> Checked {
        let queue = &self.warps[(self.current / 32) as usize].queue;
        match queue.accumulators.iter().find(|tile| tile.number == number) {
            None => Ok(()),
            Some(tile) => Err(Fault::new(
                Cause::Unwaited,
                format!(
                    "uses an accumulator of the wgmma at {} before wait_group and settle",
                    tile.latest.1
                ),
            )),
        }
    }
}
