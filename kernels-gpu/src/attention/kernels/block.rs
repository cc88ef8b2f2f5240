//! What every consumer thread of an `attend` block knows.

use super::Attend;
use super::program::Program;
use super::query::{Group, RowMap};
use super::rows::Logits;
use super::sink::{Outputs, Sink};
use crate::abi::WorkItem;
use device::shared::Shared;

/// Constants of the block and of the thread.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Start of shared memory.
    pub(super) shared: Shared<u8>,
    /// The thread.
    pub(super) thread: u32,
    /// Its warp.
    pub(super) warp: u32,
    /// KV heads.
    pub(super) kv_heads: u32,
    /// The block's KV head.
    pub(super) kv_head: u32,
    /// Query heads a KV head.
    pub(super) group: Group,
    /// How logits become exponents.
    pub(super) logits: Logits,
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub(super) q: *const u16,
    /// Of compacted nodes the biases of cells.
    pub(super) biases: *const f32,
    /// Masks of pages that hold several nodes.
    pub(super) masks: *const u64,
    /// Where results go.
    pub(super) outputs: Outputs,
}

impl Block {
    /// For the calling thread, in the block of `kv_head` whose shared memory begins at `shared`.
    #[inline(always)]
    pub(super) fn new(
        a: &Attend,
        shared: Shared<u8>,
        thread: u32,
        warp: u32,
        kv_head: u32,
        biases: *const f32,
    ) -> Self {
        Self {
            shared,
            thread,
            warp,
            kv_heads: a.kv_heads,
            kv_head,
            group: Group::new(a.group),
            logits: Logits::new(a.scale_log2, a.soft_cap),
            q: a.q,
            biases,
            masks: a.masks,
            outputs: Outputs {
                out: a.out,
                lse: a.lse,
                partial_o: a.partial_o,
                partial_lse: a.partial_lse,
                partial_slots: a.partial_slots,
            },
        }
    }

    /// Where the rows of `item` lie.
    #[inline(always)]
    pub(super) fn row_map(&self, item: &WorkItem, program: Program) -> RowMap {
        RowMap::new(item, program, self.group, self.kv_heads, self.kv_head)
    }

    /// Where the results of `item` go.
    #[inline(always)]
    pub(super) fn sink<const D: usize>(&self, item: &WorkItem, program: Program) -> Sink<D> {
        Sink::new(self.outputs, self.row_map(item, program), item, self.kv_head)
    }
}

/// A work item of the block.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    /// The block.
    pub(super) block: &'a Block,
    /// Its program.
    pub(super) program: Program,
    /// Work items in the program.
    pub(super) items: u32,
    /// This one.
    pub(super) index: u32,
    /// Its pages.
    pub(super) pages: u32,
}

impl Work<'_> {
    /// The item's record; read anew each time, since registers are for the accumulators.
    #[inline(always)]
    pub(super) unsafe fn item(&self) -> WorkItem {
        // SAFETY: the item is one of the program's.
        unsafe { self.program.item(self.index) }
    }

    /// Where the item's results go.
    #[inline(always)]
    pub(super) unsafe fn sink<const D: usize>(&self) -> Sink<D> {
        // SAFETY: the item is one of the program's.
        self.block.sink(&unsafe { self.item() }, self.program)
    }
}
