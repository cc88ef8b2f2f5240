//! Where a work item's rows go: the output, or a partial slot to be merged.

use super::query::RowMap;
use crate::abi::{NONE, WorkItem};
use crate::softmax::Approximate;
use crate::softmax::Partial;
use device::{Element, global, math};

const LN_2: f32 = core::f32::consts::LN_2;

/// Outputs of a launch.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    /// `[queries, q_heads, head_dim]`, 16 bit.
    pub(super) out: *mut u16,
    /// `[queries, q_heads]`, natural logarithm; null if not wanted.
    pub(super) lse: *mut f32,
    /// `[kv_heads][partial_slots][group][head_dim]`, normalised.
    pub(super) partial_o: *mut f32,
    /// `[kv_heads][partial_slots][group]`, base 2.
    pub(super) partial_lse: *mut f32,
    /// Slots a KV head.
    pub(super) partial_slots: u32,
}

/// Outputs of one work item and KV head.
#[derive(Clone, Copy)]
pub(super) struct Sink<const D: usize> {
    outputs: Outputs,
    map: RowMap,
    /// Straight to the output, not to the partials.
    direct: bool,
    /// First row in the partials.
    partial_row: usize,
}

impl<const D: usize> Sink<D> {
    /// For `item`.
    #[inline(always)]
    pub(super) fn new(outputs: Outputs, map: RowMap, item: &WorkItem, kv_head: u32) -> Self {
        let slot = kv_head as usize * outputs.partial_slots as usize + item.partial_slot as usize;
        Self {
            outputs,
            map,
            direct: item.partial_slot == NONE,
            partial_row: slot * map.group.size as usize,
        }
    }

    /// Where `row` of the item goes.
    #[inline(always)]
    pub(super) fn row(&self, row: u32) -> RowSink {
        let index = if self.direct {
            self.map.first() + self.map.offset(row) as usize
        } else {
            self.partial_row + row as usize
        };
        RowSink { outputs: self.outputs, direct: self.direct, valid: row < self.map.rows, index }
    }
}

/// One row's place.
#[derive(Clone, Copy)]
pub(super) struct RowSink {
    outputs: Outputs,
    direct: bool,
    valid: bool,
    index: usize,
}

impl RowSink {
    /// Stores `pairs` pairs of neighbouring normalised values, pair `j` at dim `first + 8 j`.
    #[inline(always)]
    pub(super) unsafe fn store<E: Element, const D: usize>(
        &self,
        first: u32,
        pairs: usize,
        pair: impl Fn(usize) -> [f32; 2],
    ) {
        let offset = self.index * D + first as usize;
        if !self.valid {
            return;
        }
        // SAFETY: the row lies within the outputs, and no other thread has it.
        unsafe {
            if self.direct {
                let out = self.outputs.out.add(offset);
                for j in 0..pairs {
                    let [low, high] = pair(j);
                    global::store_u32(out.add(8 * j).cast(), math::pack::<E>(low, high));
                }
            } else {
                let partial = self.outputs.partial_o.add(offset);
                for j in 0..pairs {
                    global::store_v2_f32(partial.add(8 * j), pair(j));
                }
            }
        }
    }

    /// Stores the row's log-sum-exp.
    ///
    /// # Safety
    /// The row is the calling thread's alone.
    #[inline(always)]
    pub(super) unsafe fn store_lse(&self, row: Partial) {
        if self.valid {
            let lse = row.lse2::<Approximate>();
            // SAFETY: the row lies within the outputs.
            unsafe {
                if !self.direct {
                    global::store_f32(self.outputs.partial_lse.add(self.index), lse);
                } else if !self.outputs.lse.is_null() {
                    global::store_f32(self.outputs.lse.add(self.index), lse * LN_2);
                }
            }
        }
    }
}

/// `1 / sum`, or 0 for a row that saw no token; NaN for one that saw a NaN.
#[inline(always)]
pub(super) fn inverse(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { math::reciprocal(sum) }
}
