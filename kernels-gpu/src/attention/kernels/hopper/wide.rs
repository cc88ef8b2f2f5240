//! 17 to 128 rows: `wgmma`, 64 rows a warpgroup.

use super::Source;
use super::page_tail;
use super::ring::Ring;
use crate::abi::PAGE_TOKENS;
use crate::attention::kernels::block::{Block, Work};
use crate::attention::kernels::finish::store_rows;
use crate::attention::kernels::format::Format;
use crate::attention::kernels::group_layout::GroupLayout;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::rows::{Logits, Rows, add_biases, hide, soft_cap};
use crate::attention::kernels::sink::{Sink, inverse};
use crate::attention::tile::{CONSUMERS, hopper::Tile};
use crate::softmax::Approximate;
use crate::softmax::Partial;
use device::matrix::Row;
use device::shared::Shared;
use device::warp::FULL_MASK;
use device::wgmma::{Accumulators, Descriptor, Operand};
use device::{Element, bulk, math, register, thread, warp, wgmma};

/// A warpgroup's 64 rows; `O` output registers a thread, half the head dimension.
struct Chunk<const O: usize> {
    rows: Rows,
    o: [f32; O],
}

/// Processes all pages of an item. `shared_pages`: up to 64 rows, the warpgroups take turns at pages; else each
/// warpgroup has 64 rows of its own. `KS = D / 16`, `O = D / 2`.
///
/// While a page's softmax runs, the tensor cores have the product of the page before with its V, and whatever
/// the other warpgroup gives them. Nothing is under way from one turn of the loop to the next, and `p` is packed
/// only when the product that reads it is through: else `ptxas` would serialise all products.
///
/// # Safety
/// As [`super::attend`]; called by all consumers of the block.
#[inline(always)]
pub(super) unsafe fn run<
    E: Element,
    F: Format,
    C: Source,
    const D: usize,
    const KS: usize,
    const O: usize,
    const S: u32,
>(
    work: &Work,
    ring: &mut Ring<D, S>,
    shared_pages: bool,
) where
    [f32; O]: Accumulators,
{
    let block = work.block;
    let warpgroup = block.warp / 4;
    let first_row = if shared_pages { 0 } else { 64 * warpgroup };
    let row = first_row + block.thread % 128 / 32 * 16 + block.thread % 32 / 4;
    let query = query::<D>(block, first_row);
    let mut chunk = Chunk::<O> { rows: Rows::EMPTY, o: [0.0; O] };
    let mut turns = Turns { left: work.pages, shared_pages, mine: warpgroup == 0, key: ring.key() };
    // SAFETY: the caller's; a stage is read between its arrival and its release.
    unsafe {
        turns.look_ahead(ring);
        if turns.next(ring) {
            let mut s = [0.0f32; 32];
            let mut now = start::<E, C, D, KS, S>(work, ring, &turns, query, &mut s);
            turns.look_ahead(ring);
            wgmma::wait_group_settle::<0, _>(&mut s);
            softmax::<F, C, D, S>(work, &now, &mut chunk.rows, &mut s, row, shared_pages);
            let mut p = pack::<E>(&s);
            while turns.next(ring) {
                if S == 2 {
                    // Each warpgroup has one of the stages: it gives its page back before it asks for another.
                    multiply::<E, C::Layout, D, O, S>(&mut chunk.o, &p, &now);
                    wgmma::wait_group_settle::<0, _>(&mut chunk.o);
                    now.ring.release();
                    now = start::<E, C, D, KS, S>(work, ring, &turns, query, &mut s);
                    turns.look_ahead(ring);
                    wgmma::wait_group_settle::<0, _>(&mut s);
                    let factor = softmax::<F, C, D, S>(
                        work,
                        &now,
                        &mut chunk.rows,
                        &mut s,
                        row,
                        shared_pages,
                    );
                    rescale(&mut chunk.o, factor);
                    p = pack::<E>(&s);
                    continue;
                }
                let next = start::<E, C, D, KS, S>(work, ring, &turns, query, &mut s);
                multiply::<E, C::Layout, D, O, S>(&mut chunk.o, &p, &now);
                turns.look_ahead(ring);
                wgmma::wait_group_settle::<1, _>(&mut s);
                let factor =
                    softmax::<F, C, D, S>(work, &next, &mut chunk.rows, &mut s, row, shared_pages);
                wgmma::wait_group_settle::<0, _>(&mut chunk.o);
                now.ring.release();
                rescale(&mut chunk.o, factor);
                p = pack::<E>(&s);
                now = next;
            }
            multiply::<E, C::Layout, D, O, S>(&mut chunk.o, &p, &now);
            wgmma::wait_group_settle::<0, _>(&mut chunk.o);
            now.ring.release();
        }
        chunk.rows.reduce();
        if shared_pages {
            merge_warpgroups::<D, O>(&mut chunk, block);
            if warpgroup == 1 {
                return;
            }
        }
        store::<E, D, O>(&mut chunk, &work.sink(), register::late(row));
    }
}

/// Whose turn it is.
struct Turns {
    left: u32,
    shared_pages: bool,
    /// The next page is this warpgroup's.
    mine: bool,
    /// Shared address of K of the warpgroup's next page.
    key: Shared<Row>,
}

impl Turns {
    /// Finds the warpgroup's next page. The address is the same for all lanes, which the compiler cannot see;
    /// after a shuffle it keeps descriptors in uniform registers. Done while products run, since a
    /// shuffle takes its time.
    #[inline(always)]
    unsafe fn look_ahead<const D: usize, const S: u32>(&mut self, ring: &Ring<D, S>) {
        let mut next = *ring;
        if self.shared_pages && !self.mine {
            next.advance();
        }
        // SAFETY: the warp is whole.
        self.key = unsafe { warp::warp_shuffle_idx(FULL_MASK, next.key(), 0) };
    }

    /// Moves to the warpgroup's next page, letting the other's pass; false after the last.
    #[inline(always)]
    unsafe fn next<const D: usize, const S: u32>(&mut self, ring: &mut Ring<D, S>) -> bool {
        if self.shared_pages {
            if !self.mine && self.left > 0 {
                self.left -= 1;
                // SAFETY: the stage is this warpgroup's to release, once.
                unsafe { ring.skip() };
            }
            self.mine = false;
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

/// A page in the ring.
#[derive(Clone, Copy)]
struct Stage<const D: usize, const S: u32> {
    ring: Ring<D, S>,
    /// Shared address of K; V follows.
    key: Shared<Row>,
    page: PartialPage,
}

/// Starts `s = Q K^T` of the ring's next page, whose K lies where `turns` says.
#[inline(always)]
unsafe fn start<E: Element, C: Source, const D: usize, const KS: usize, const S: u32>(
    work: &Work,
    ring: &mut Ring<D, S>,
    turns: &Turns,
    query: Operand,
    s: &mut [f32; 32],
) -> Stage<D, S> {
    // SAFETY: all warps of the warpgroup are here; the page has landed when it is read.
    unsafe {
        ring.wait_full();
        let stage = Stage { ring: *ring, key: turns.key, page: ring.page() };
        if !C::FINITE && warp::warp_vote_any(FULL_MASK, stage.page.tokens != 0) {
            by_readers(work.block, turns.shared_pages, |thread, threads| {
                let tokens = 0..PAGE_TOKENS;
                page_tail::mend::<E, C::Layout, D>(
                    stage.key, work, stage.page, tokens, thread, threads,
                );
            });
        }
        wgmma::fence();
        C::Layout::multiply_key::<E, D, KS>(s, query, stage.key);
        wgmma::commit_group();
        ring.advance();
        stage
    }
}

/// Starts `o += p V`.
#[inline(always)]
unsafe fn multiply<E: Element, L: GroupLayout, const D: usize, const O: usize, const S: u32>(
    o: &mut [f32; O],
    p: &[[u32; 4]; 4],
    stage: &Stage<D, S>,
) where
    [f32; O]: Accumulators,
{
    let v = L::value::<D>(stage.key.offset(Tile::<D>::HALF_BYTES));
    // SAFETY: all warps of the warpgroup are here; `p` stays until the wait.
    unsafe {
        wgmma::fence_accumulators(o);
        wgmma::mma_registers::<E, true, 4, _>(o, p, v, true);
        wgmma::commit_group();
    }
}

/// Turns a page's logits into probabilities; returns what the output must first be multiplied with.
#[inline(always)]
unsafe fn softmax<F: Format, C: Source, const D: usize, const S: u32>(
    work: &Work,
    stage: &Stage<D, S>,
    rows: &mut Rows,
    s: &mut [f32; 32],
    row: u32,
    shared_pages: bool,
) -> Option<[f32; 2]> {
    soft_cap(s, work.block.logits);
    // SAFETY: the stage has landed and is not released yet.
    unsafe {
        let page = stage.page;
        if F::COMPACTED {
            let (cell, first) = (stage.ring.cell(), work.block.thread % 4 * 2);
            add_biases(s, work.block, page, cell, first);
        }
        if warp::warp_vote_any(FULL_MASK, page.tokens != 0) {
            hide(s, work, page, row, work.block.thread % 4 * 2);
            if C::FINITE && page.tokens != PAGE_TOKENS {
                let v = stage.key.offset(Tile::<D>::HALF_BYTES);
                by_readers(work.block, shared_pages, |thread, threads| {
                    page_tail::clear::<C::Layout, D>(
                        v,
                        page.tokens,
                        0..PAGE_TOKENS,
                        thread,
                        threads,
                    );
                });
            }
        }
        if F::COMPACTED {
            rows.update(s, Logits::SCALED)
        } else {
            rows.update(s, work.block.logits)
        }
    }
}

/// Multiplies the output with a row factor each, if there is one.
#[inline(always)]
fn rescale<const O: usize>(o: &mut [f32; O], factor: Option<[f32; 2]>) {
    if let Some(factor) = factor {
        for i in 0..O {
            o[i] *= factor[i / 2 % 2];
        }
    }
}

/// The A operand of P V: an accumulator's columns `8 j + 2 t` and the next are a fragment's.
#[inline(always)]
fn pack<E: Element>(p: &[f32; 32]) -> [[u32; 4]; 4] {
    core::array::from_fn(|step| {
        core::array::from_fn(|i| {
            let first = 8 * step + 2 * i;
            math::pack::<E>(p[first], p[first + 1])
        })
    })
}

/// 64 query rows: the A operand of Q K^T, dims contiguous.
#[inline(always)]
fn query<const D: usize>(block: &Block, first_row: u32) -> Operand {
    let group = Tile::<D>::GROUP_BYTES;
    let first = block.shared.offset(Tile::<D>::QUERY + first_row / 8 * group);
    Operand { descriptor: Descriptor::new(first, 128, group), step_bytes: 256 }
}

/// Has a page's rows changed by the threads that read it, each told its number and how many they are.
#[inline(always)]
unsafe fn by_readers(block: &Block, shared_pages: bool, change: impl Fn(u32, u32)) {
    if shared_pages {
        change(block.thread % 128, 128);
    } else {
        change(block.thread, CONSUMERS);
    }
    bulk::fence_proxy_async_shared();
    // SAFETY: nobody reads the page before the barrier, and only those who come to it read it.
    unsafe {
        if !shared_pages {
            thread::named_barrier_sync::<1>(CONSUMERS);
        } else if block.warp < 4 {
            thread::named_barrier_sync::<2>(128);
        } else {
            thread::named_barrier_sync::<3>(128);
        }
    }
}

/// Output registers a thread exchanges at a time: at most 32 KiB a block, which is the query tile, and fewer
/// where the accumulators leave no room for as many loads.
const fn pass_registers(outputs: usize) -> usize {
    if outputs <= 64 { 64 } else { 32 }
}

/// Merges the second warpgroup's results into the first's.
#[inline(always)]
unsafe fn merge_warpgroups<const D: usize, const O: usize>(chunk: &mut Chunk<O>, block: &Block) {
    let thread = register::late(block.thread) % 128;
    let row = thread / 32 * 16 + thread % 32 / 4;
    let statistics = block.shared.offset(Tile::<D>::STATISTICS).offset(row * 8);
    let statistics: Shared<[f32; 2]> = statistics.cast();
    let (own, other) = if block.warp < 4 { (0, 512) } else { (512, 0) };
    let exchange = block.shared.offset(Tile::<D>::QUERY).offset(thread * 8);
    let exchange: Shared<[f32; 2]> = exchange.cast();
    // SAFETY: barriers order the exchange; the query tile is free once both warpgroups are here.
    unsafe {
        if thread.is_multiple_of(4) {
            for e in 0..2 {
                let place = statistics.offset(own + e as u32 * 64);
                place.store([chunk.rows.max[e], chunk.rows.sum[e]]);
            }
        }
        thread::named_barrier_sync::<1>(CONSUMERS);
        let mut factor = [0.0; 2];
        for (e, factor) in factor.iter_mut().enumerate() {
            let [max, sum] = statistics.offset(other + e as u32 * 64).load();
            let merged = chunk.rows.partial(e).merge::<Approximate>(Partial { max, sum });
            chunk.rows.max[e] = merged.partial.max;
            chunk.rows.sum[e] = merged.partial.sum;
            *factor = merged.first;
        }
        rescale(&mut chunk.o, Some(factor));
        let count = pass_registers(O);
        for pass in 0..O.div_ceil(count) {
            let registers = pass * count..O.min(pass * count + count);
            let place = |i: usize| exchange.offset((i - pass * count) as u32 * 512);
            if pass > 0 {
                thread::named_barrier_sync::<1>(CONSUMERS);
            }
            if block.warp >= 4 {
                for i in registers.clone().step_by(2) {
                    place(i).store([chunk.o[i], chunk.o[i + 1]]);
                }
            }
            thread::named_barrier_sync::<1>(CONSUMERS);
            if block.warp < 4 {
                for i in registers.step_by(2) {
                    let part = place(i).load();
                    chunk.o[i] += part[0];
                    chunk.o[i + 1] += part[1];
                }
            }
        }
    }
}

/// Stores the thread's two rows, `row` and `row + 8`.
#[inline(always)]
unsafe fn store<E: Element, const D: usize, const O: usize>(
    chunk: &mut Chunk<O>,
    sink: &Sink<D>,
    row: u32,
) {
    let scale = chunk.rows.sum.map(inverse);
    for i in 0..O {
        chunk.o[i] *= scale[i / 2 % 2];
    }
    // SAFETY: the rows are this thread's alone.
    unsafe {
        store_rows::<E, D>(&chunk.rows, sink, row, |j, e| {
            [chunk.o[4 * j + 2 * e], chunk.o[4 * j + 2 * e + 1]]
        });
    }
}
