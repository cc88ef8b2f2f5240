//! From partial results to outputs.

use kernels_gpu::abi::NONE;
use kernels_gpu::softmax::Partial;
use rayon::prelude::*;

use super::item::{Call, StdMath};
use crate::cache::KvElement;
use crate::plan::Plan;

/// Largest head dimension: what a row's accumulator takes on the stack.
pub(super) const MAX_HEAD_DIM: usize = 256;

/// Where the partial results of every query are, in queries from the start of a KV head's part.
#[derive(Debug, Default)]
pub(super) struct Sources {
    queries_per_share: usize,
    /// Queries of all shares, then those that get something of residues.
    per_kv_head: usize,
    /// Of each row that one item has done alone, else [`NONE`].
    alone: Vec<u32>,
    /// Of each partial slot.
    slots: Vec<u32>,
    /// Of each row, its entry of [`Plan::merge_rows`] or [`NONE`].
    merged: Vec<u32>,
}

impl Sources {
    /// Goes through a plan's items in the order in which a share's results lie one after the other.
    pub(super) fn index(&mut self, plan: &Plan) {
        let items = |share| plan.share(share).items();
        let queries = |share| items(share).map(|item| item.record.query_count).sum::<u32>();
        let most = (0..plan.shares()).map(queries).max().unwrap_or(0);
        self.queries_per_share = most as usize;
        self.per_kv_head = most as usize * plan.shares() as usize;
        refill(&mut self.alone, plan.queries());
        refill(&mut self.slots, plan.partial_slots());
        refill(&mut self.merged, plan.queries());
        for share in 0..plan.shares() {
            let mut at = share * most;
            for item in items(share) {
                let slot = item.record.partial_slot;
                for (index, row) in (0..).zip(item.rows()) {
                    let (places, place) = match slot {
                        NONE => (&mut self.alone, row),
                        slot => (&mut self.slots, slot + index),
                    };
                    places[place as usize] = at + index;
                }
                at += item.record.query_count;
            }
        }
        for residue in plan.residues() {
            for (slot, _) in (residue.partial_slot..).zip(residue.queries.clone()) {
                self.slots[slot as usize] = self.per_kv_head as u32;
                self.per_kv_head += 1;
            }
        }
        for (index, row) in (0..).zip(plan.merge_rows()) {
            self.merged[row.row as usize] = index;
        }
    }

    pub(super) fn queries_per_share(&self) -> usize {
        self.queries_per_share
    }

    pub(super) fn per_kv_head(&self) -> usize {
        self.per_kv_head
    }

    /// The places of one row's partial results, in the order in which they merge.
    fn of_row<'a>(&'a self, plan: &'a Plan, row: usize) -> impl Iterator<Item = usize> + 'a {
        let alone = Some(self.alone[row]).filter(|&at| at != NONE);
        let row = plan.merge_rows().get(self.merged[row] as usize);
        let slots = row.map_or(&[][..], |row| {
            &plan.merge_slots()[row.slot_begin as usize..][..row.slot_count as usize]
        });
        let slots = slots.iter().map(|&slot| self.slots[slot as usize]);
        alone.into_iter().chain(slots).map(|at| at as usize)
    }
}

fn refill(places: &mut Vec<u32>, len: u32) {
    places.clear();
    places.resize(len as usize, NONE);
}

/// Merges every query's partial results into `out` (`[queries, q_heads, head_dim]`) and `lse`
/// (`[queries, q_heads]`, natural logarithm).
pub(super) fn merge<T: KvElement>(
    call: &Call<'_, T>,
    sources: &Sources,
    partial_o: &[f32],
    partial_lse: &[f32],
    out: &mut [T],
    lse: &mut [f32],
) {
    let (group, head_dim) = (call.group(), call.head_dim());
    let q_heads = group * call.kv_heads as usize;
    let queries = out.par_chunks_exact_mut(q_heads * head_dim);
    let queries = queries.zip(lse.par_chunks_exact_mut(q_heads)).enumerate();
    queries.with_min_len(8).for_each(|(query, (out, lse))| {
        let heads = out.chunks_exact_mut(head_dim).zip(lse).enumerate();
        for (head, (out, lse)) in heads {
            let base = head / group * sources.per_kv_head;
            let rows = sources.of_row(call.plan, query);
            let rows = rows.map(|at| (base + at) * group + head % group);
            let rows = rows.map(|row| {
                let o = &partial_o[row * head_dim..(row + 1) * head_dim];
                (o, partial_lse[row])
            });
            *lse = merge_row(rows, out) * std::f32::consts::LN_2;
        }
    });
}

/// Merges normalised rows with base-2 LSE into one; returns its base-2 LSE.
fn merge_row<'a, T: KvElement>(rows: impl Iterator<Item = (&'a [f32], f32)>, out: &mut [T]) -> f32 {
    let mut sum = [0.0; MAX_HEAD_DIM];
    let sum = &mut sum[..out.len()];
    let mut partial = Partial::EMPTY;
    for (o, lse) in rows {
        let merged = partial.merge::<StdMath>(Partial::from_lse(lse));
        partial = merged.partial;
        for (sum, o) in sum.iter_mut().zip(o) {
            *sum = *sum * merged.first + o * merged.second;
        }
    }
    let factor = partial.normalizer();
    for (out, sum) in out.iter_mut().zip(sum) {
        *out = T::from_f32(*sum * factor);
    }
    partial.lse2::<StdMath>()
}
