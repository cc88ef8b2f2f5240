//! Warpgroup matrix multiplication (`wgmma`): asynchronous, operands in shared memory.
//!
//! A warp's part of a multiplication, 16 rows, is computed some time between its issue and the wait that
//! covers it. Meanwhile the kernel's accumulators hold a mark instead of numbers; `settle` puts the
//! numbers in their place. So whoever reads them too early reads a NaN, and is reported where it is
//! computed with or stored.

use std::collections::VecDeque;
use std::panic::Location;

use crate::block::{Block, instruction};
use crate::clock::View;
use crate::matrix::{a_tile, to_f32};
use crate::report::{Cause, Checked, Fault, Site};
use crate::shadow::Access;
use crate::shared::BASE;
use crate::warp::{Outcome, collective};

/// High half of a mark; the low half is the accumulators' number. Arithmetic sets [`QUIET`].
const MARK: u32 = 0x7fa5_0000;
const QUIET: u32 = 1 << 22;

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

/// What a warp has multiplied and not settled.
#[derive(Default)]
pub(crate) struct WarpQueue {
    pending: VecDeque<Multiplication>,
    accumulators: Vec<AccumulatorTile>,
    next_tile: u16,
    /// Multiplications issued so far: the latest one's epoch.
    issued: u32,
    /// Groups closed so far: the epoch each ends with.
    groups: Vec<u32>,
    /// Latest epoch waited for.
    waited: u32,
    fenced: bool,
    /// Multiplications checked against the warpgroup's.
    agreed: usize,
}

/// A multiplication that has been issued and not computed.
struct Multiplication {
    tile: u16,
    epoch: u32,
    a: Source,
    b: B,
    shape: Shape,
    view: View,
    thread: u32,
    site: Site,
}

/// `a` while the multiplication waits.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    Shared {
        descriptor: u64,
        step_bytes: u32,
        transposed: bool,
    },
    /// Each step's fragments of all lanes.
    Registers(Vec<[[u32; 4]; 32]>),
}

/// A warp's 16 rows of accumulators, while the kernel's hold marks.
struct AccumulatorTile {
    number: u16,
    n: u32,
    /// `[16][n]`.
    values: Vec<f32>,
    /// Epoch and place of the latest multiplication into it.
    latest: (u32, Site),
}

/// What the warps of a warpgroup must agree on, in order; entries all have passed are dropped.
#[derive(Default)]
pub(crate) struct Agreement {
    first: usize,
    entries: VecDeque<(Site, Key, u32)>,
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
    collective(
        "wgmma.commit_group",
        Location::caller(),
        &mut (),
        |block, _| {
            let queue = block.queue();
            queue.groups.push(queue.issued);
            Ok(Outcome::Go)
        },
    );
}

/// `wgmma.wait_group`.
#[track_caller]
pub fn wait_group(pending: u32) {
    collective(
        "wgmma.wait_group",
        Location::caller(),
        &mut (),
        |block, _| {
            let warp = block.current / 32;
            let queue = block.queue();
            let covered = queue.groups.len().saturating_sub(pending as usize);
            let until = covered.checked_sub(1).map_or(0, |last| queue.groups[last]);
            queue.waited = queue.waited.max(until);
            queue.fenced = false;
            while block
                .queue()
                .pending
                .front()
                .is_some_and(|next| next.epoch <= until)
            {
                block.compute_next(warp)?;
            }
            let agent = block.agents.wgmma(warp);
            for thread in Block::warp_threads(warp) {
                block.threads[thread as usize].view.learn(agent, until);
            }
            Ok(Outcome::Go)
        },
    );
}

/// Puts the results where `d` is; all multiplications into it must have been waited for.
#[track_caller]
pub fn settle(d: &mut [f32]) {
    let n = 2 * d.len() as u32;
    let mut operands = d.as_mut_ptr();
    collective(
        "wgmma settle",
        Location::caller(),
        &mut operands,
        |block, lanes| {
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
        },
    );
}

/// `wgmma.mma_async`, `shape.steps` of them: starts `d (+)= a * b`.
#[track_caller]
pub fn mma(d: &mut [f32], a: A<'_>, b: B, shape: Shape) {
    let site = Location::caller();
    let (in_registers, in_shared) = match a {
        A::Registers(steps) => (Some(steps.to_vec()), None),
        A::Shared {
            descriptor,
            step_bytes,
            transposed,
        } => (None, Some((descriptor, step_bytes, transposed))),
    };
    let mut operands = Operands {
        d: d.as_mut_ptr(),
        a: in_registers,
        key: (in_shared, b, shape),
    };
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

/// Place in a `[16][n]` tile of a lane's accumulator `i` (PTX ISA, "wgmma" D fragment).
fn position(n: u32, lane: usize, i: usize) -> usize {
    let row = lane / 4 + 8 * (i / 2 % 2);
    let column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    row * n as usize + column
}

impl WarpQueue {
    /// The tile that the lanes' accumulators are marked with.
    fn find(&self, lanes: &[&mut *mut f32; 32], n: u32) -> Checked<Option<usize>> {
        // SAFETY: each lane is suspended in a call that has accumulators here.
        let bits = lanes.each_ref().map(|d| unsafe { (***d).to_bits() });
        let number = |bits: u32| (bits & !0xffff == MARK).then_some(bits as u16);
        let Some(tile) = number(bits[0]) else {
            return Ok(None);
        };
        let index = self
            .accumulators
            .iter()
            .position(|a| a.number == tile && a.n == n);
        match index {
            Some(index) if bits.iter().all(|lane| number(*lane) == Some(tile)) => Ok(Some(index)),
            _ => Err(Fault::new(
                Cause::Divergence,
                "lanes of a warp bring accumulators of different multiplications",
            )),
        }
    }
}

impl Block<'_> {
    /// The running warp's.
    fn queue(&mut self) -> &mut WarpQueue {
        &mut self.warps[(self.current / 32) as usize].queue
    }

    fn issue(&mut self, lanes: &mut [&mut Operands; 32], site: Site) -> Checked {
        let (shared, b, shape) = lanes[0].key;
        let (thread, view) = (self.current, self.thread().view.clone());
        let queue = self.queue();
        if !queue.fenced {
            let text = "wgmma without a wgmma.fence since the last wait_group";
            return Err(Fault::new(Cause::Unwaited, text));
        }
        queue.issued += 1;
        let epoch = queue.issued;
        let mut pointers = lanes.each_ref().map(|lane| lane.d);
        let known = queue.find(&pointers.each_mut(), shape.n)?;
        let index = known.unwrap_or_else(|| queue.take(&pointers, shape.n));
        queue.accumulators[index].latest = (epoch, site);
        let tile = queue.accumulators[index].number;
        let a = match shared {
            Some((descriptor, step_bytes, transposed)) => Source::Shared {
                descriptor,
                step_bytes,
                transposed,
            },
            None => {
                let step = |step: usize| {
                    std::array::from_fn(|lane| lanes[lane].a.as_ref().map_or([0; 4], |a| a[step]))
                };
                Source::Registers((0..shape.steps as usize).map(step).collect())
            }
        };
        queue.pending.push_back(Multiplication {
            tile,
            epoch,
            a,
            b,
            shape,
            view,
            thread,
            site,
        });
        Ok(())
    }

    pub(crate) fn wgmma_in_flight(&self) -> bool {
        self.warps.iter().any(|warp| !warp.queue.pending.is_empty())
    }

    /// Computes any warp's next multiplication.
    pub(crate) fn land_any_wgmma(&mut self) -> Checked<bool> {
        let warps = self.warps.len() as u32;
        let first = self.random.below(warps);
        for warp in (0..warps).map(|i| (first + i) % warps) {
            if !self.warps[warp as usize].queue.pending.is_empty() {
                self.compute_next(warp)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn compute_next(&mut self, warp: u32) -> Checked {
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
        self.compute(warp, &multiplication, &mut values)
            .map_err(|fault| fault.by(thread, site))?;
        self.warps[warp as usize].queue.accumulators[index].values = values;
        Ok(())
    }

    /// `values[16][n] (+)= a * b`.
    fn compute(&mut self, warp: u32, m: &Multiplication, values: &mut [f32]) -> Checked {
        if !m.shape.accumulate {
            values.fill(0.0);
        }
        let n = m.shape.n as usize;
        let access = Access {
            agent: self.agents.wgmma(warp),
            epoch: m.epoch,
            view: &m.view,
            asynchronous: true,
            poison: self.grid.poison_matrix_reads,
            site: m.site,
        };
        let mut b = vec![0.0; 16 * n];
        for step in 0..m.shape.steps {
            let a = match &m.a {
                Source::Registers(steps) => a_tile(&steps[step as usize], m.shape.bf16),
                Source::Shared {
                    descriptor,
                    step_bytes,
                    transposed,
                } => {
                    let operand = SharedOperand::new(*descriptor, *step_bytes, step, *transposed);
                    let mut a = [[0.0; 16]; 16];
                    self.read_operand(
                        &operand,
                        warp % 4 * 2,
                        2,
                        m.shape.bf16,
                        &access,
                        |row, k, x| {
                            a[row][k] = x;
                        },
                    )?;
                    a
                }
            };
            let operand = SharedOperand::new(m.b.descriptor, m.b.step_bytes, step, m.b.transposed);
            self.read_operand(
                &operand,
                0,
                m.shape.n / 8,
                m.shape.bf16,
                &access,
                |column, k, x| {
                    b[k * n + column] = x;
                },
            )?;
            for (row, values) in a.iter().zip(values.chunks_exact_mut(n)) {
                for (x, b) in row.iter().zip(b.chunks_exact(n)) {
                    for (value, y) in values.iter_mut().zip(b) {
                        *value += x * y;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `put(row, k, value)` for 16 of K and `cores` times 8 rows (of M or N) from core `first`.
    fn read_operand(
        &mut self,
        operand: &SharedOperand,
        first: u32,
        cores: u32,
        is_bf16: bool,
        access: &Access<'_>,
        mut put: impl FnMut(usize, usize, f32),
    ) -> Checked {
        for core in 0..cores {
            for half in 0..2 {
                let address = operand.core(first + core, half);
                let offset = self.shared.offset(address, 128)?;
                self.shared.shadow.read(offset, 128, access, &self.agents)?;
                let bytes = self.shared.bytes(offset, 128);
                for (i, element) in bytes.chunks_exact(2).enumerate() {
                    let value = to_f32(u16::from_ne_bytes([element[0], element[1]]), is_bf16);
                    let (outer, inner) = (i / 8, i % 8);
                    let (row, k) = if operand.transposed {
                        (inner, outer)
                    } else {
                        (outer, inner)
                    };
                    put(core as usize * 8 + row, half as usize * 8 + k, value);
                }
            }
        }
        Ok(())
    }

    /// Checks that the warps of a warpgroup issue the same multiplications.
    fn agree(&mut self, site: Site, key: Key) -> Checked {
        let warp = self.current / 32;
        let queue = &mut self.warps[warp as usize].queue;
        let turn = queue.agreed;
        queue.agreed += 1;
        let members = (self.warps.len() as u32 - warp / 4 * 4).min(4);
        if members < 4 {
            let text = "wgmma needs four warps, the first a multiple of 4";
            return Err(Fault::new(Cause::Divergence, text));
        }
        let agreement = &mut self.warpgroups[(warp / 4) as usize];
        let index = turn - agreement.first;
        if index == agreement.entries.len() {
            agreement.entries.push_back((site, key, 0));
        }
        let (first_site, first_key, passed) = &mut agreement.entries[index];
        if *first_key != key || *first_site != site {
            let text = format!(
                "warps of a warpgroup multiply differently: another issued the wgmma at {first_site}{}",
                if *first_site == site {
                    ", with other operands"
                } else {
                    ""
                }
            );
            return Err(Fault::new(Cause::Divergence, text));
        }
        *passed += 1;
        if *passed == members {
            agreement.entries.pop_front();
            agreement.first += 1;
        }
        Ok(())
    }

    /// Checks that all warps of each warpgroup multiplied, and waited.
    pub(crate) fn check_wgmma_finished(&self) -> Checked {
        for agreement in &self.warpgroups {
            if let Some((site, ..)) = agreement.entries.front() {
                let text = format!("not all warps of a warpgroup issued the wgmma at {site}");
                return Err(Fault::new(Cause::Divergence, text));
            }
        }
        for warp in &self.warps {
            if warp.queue.issued > warp.queue.waited {
                let text = "the block ends without having waited for its wgmmas";
                return Err(Fault::new(Cause::Unwaited, text));
            }
        }
        Ok(())
    }
}

impl WarpQueue {
    /// Takes the lanes' accumulators and leaves marks; the new tile's index.
    fn take(&mut self, lanes: &[*mut f32; 32], n: u32) -> usize {
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
        self.accumulators.push(AccumulatorTile {
            number,
            n,
            values,
            latest: (0, Location::caller()),
        });
        self.accumulators.len() - 1
    }
}

/// One step's 16 of K of an operand in shared memory.
struct SharedOperand {
    address: u32,
    leading: u32,
    stride: u32,
    transposed: bool,
}

impl SharedOperand {
    fn new(descriptor: u64, step_bytes: u32, step: u32, transposed: bool) -> Self {
        let field = |shift: u32| ((descriptor >> shift) as u32 & 0x3fff) << 4;
        Self {
            address: field(0) + step * step_bytes,
            leading: field(16),
            stride: field(32),
            transposed,
        }
    }

    /// Address of the core matrix with rows `8 * core..` and `8 * half..` of K; it wraps at 256 KiB.
    fn core(&self, core: u32, half: u32) -> u32 {
        (self.address + core * self.stride + half * self.leading) & 0x3ffff
    }
}

/// A number that is not a mark of unsettled accumulators.
#[inline]
#[track_caller]
pub(crate) fn settled(x: f32) -> f32 {
    if is_mark(x.to_bits()) {
        instruction(Location::caller(), |_| Err::<(), _>(unsettled()));
    }
    x
}

/// Fails if a word of `bytes` is a mark.
#[inline]
pub(crate) fn check_settled(bytes: &[u8]) -> Checked {
    for word in bytes.chunks_exact(4) {
        if is_mark(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])) {
            return Err(unsettled());
        }
    }
    Ok(())
}

#[inline]
fn is_mark(bits: u32) -> bool {
    (bits | QUIET) & !0xffff == MARK | QUIET
}

#[cold]
fn unsettled() -> Box<Fault> {
    Fault::new(
        Cause::Unwaited,
        "uses an accumulator of a wgmma before wait_group and settle",
    )
}

const _: () = assert!(BASE.is_multiple_of(1024));
