//! Partial results of rows that were folded away.

use super::item::Call;
use crate::cache::KvElement;
use crate::tree::Residues;

/// What the queries of one KV head get of residues, in the order of their slots: normalised `o` as
/// `[queries, group, head_dim]` and the base-2 `lse` as `[queries, group]`.
pub(super) fn run<T: KvElement>(
    call: &Call<'_, T>,
    (layer, residues): (u32, &Residues),
    kv_head: u32,
    o: &mut [f32],
    lse: &mut [f32],
) {
    let (group, head_dim) = (call.group(), call.head_dim());
    let width = group * call.kv_heads as usize;
    let map = residues.map();
    let mut features = vec![0.0; map.rank()];
    let mut q = vec![0.0; head_dim];
    let merge_rows = call.plan.merge_rows();
    let mut partial = o.chunks_exact_mut(head_dim).zip(lse);
    for seen in call.plan.residues() {
        let heads = residues.of(seen.index);
        let of_head = heads.get((layer * call.kv_heads + kv_head) as usize);
        let first = merge_rows.partition_point(|row| row.query < seen.queries.start);
        let rows = &merge_rows[first..first + seen.queries.len()];
        for row in rows {
            for (index, (o, lse)) in (0..group).zip(&mut partial) {
                let q_head = kv_head as usize * group + index;
                let at = (row.row as usize * width + q_head) * head_dim;
                T::widen(&call.q[at..at + head_dim], &mut q);
                map.phi(layer, q_head as u32, &q, &mut features);
                let natural = of_head.map_or(f32::NEG_INFINITY, |of| of.attend(&features, o));
                *lse = natural * std::f32::consts::LOG2_E;
            }
        }
    }
}
