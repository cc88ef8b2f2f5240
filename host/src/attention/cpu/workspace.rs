//! Running a plan: all KV heads and shares, each into memory of its own, then the merge.

use rayon::prelude::*;

use super::item::{Call, Source};
use super::merge::{Sources, merge};
use super::residue;
use crate::cache::KvElement;

/// Memory that calls have in common.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    sources: Sources,
    /// `[kv_head][share][queries of a share][group][head_dim]`.
    o: Vec<f32>,
    /// `[kv_head][share][queries of a share][group]`, base 2.
    lse: Vec<f32>,
    /// The LSE that nobody asked for.
    unused: Vec<f32>,
}

impl Workspace {
    /// Runs a call whose arguments were checked.
    pub(super) fn run<T: KvElement>(
        &mut self,
        call: &Call<'_, T>,
        out: &mut [T],
        lse: Option<&mut [f32]>,
    ) {
        let Self { sources, o, lse: partial_lse, unused } = self;
        let lse = lse.unwrap_or_else(|| {
            let rows = call.plan.queries() * call.plan.group_size() * call.kv_heads;
            unused.resize(rows as usize, 0.0);
            unused
        });
        sources.index(call.plan);
        run_parts(call, sources, o, partial_lse);
        merge(call, sources, o, partial_lse, out, lse);
    }
}

/// Runs all KV heads, each into its own part of `o` and `lse`, which grow as needed.
fn run_parts<T: KvElement>(
    call: &Call<'_, T>,
    sources: &Sources,
    o: &mut Vec<f32>,
    lse: &mut Vec<f32>,
) {
    let rows = sources.per_kv_head() * call.group();
    let width = rows * call.head_dim();
    let heads = call.kv_heads as usize;
    grow(o, heads * width);
    grow(lse, heads * rows);
    if rows == 0 {
        return;
    }
    o[..heads * width]
        .par_chunks_exact_mut(width)
        .zip(lse[..heads * rows].par_chunks_exact_mut(rows))
        .enumerate()
        .with_max_len(1)
        .for_each(|(kv_head, (o, lse))| run_head(call, sources, kv_head as u32, o, lse));
}

/// Runs all shares of one KV head, each into its own part, then residues into what is left.
fn run_head<T: KvElement>(
    call: &Call<'_, T>,
    sources: &Sources,
    kv_head: u32,
    o: &mut [f32],
    lse: &mut [f32],
) {
    let rows = sources.queries_per_share() * call.group();
    let width = rows * call.head_dim();
    let shares = call.plan.shares() as usize;
    let (o, residue_o) = o.split_at_mut(shares * width);
    let (lse, residue_lse) = lse.split_at_mut(shares * rows);
    if rows > 0 {
        o.par_chunks_exact_mut(width)
            .zip(lse.par_chunks_exact_mut(rows))
            .enumerate()
            .with_max_len(1)
            .for_each(|(share, (o, lse))| run_share(call, [kv_head, share as u32], o, lse));
    }
    if let (Source::Own(_, layer), Some(residues)) = (&call.source, call.residues) {
        residue::run(call, (*layer, residues), kv_head, residue_o, residue_lse);
    }
}

/// Runs the items of one share on one KV head.
fn run_share<T: KvElement>(
    call: &Call<'_, T>,
    [kv_head, share]: [u32; 2],
    mut o: &mut [f32],
    mut lse: &mut [f32],
) {
    for item in call.plan.share(share).items() {
        let rows = item.record.query_count as usize * call.group();
        let (item_o, rest_o) = o.split_at_mut(rows * call.head_dim());
        let (item_lse, rest_lse) = lse.split_at_mut(rows);
        call.run(&item, kv_head, item_o, item_lse);
        (o, lse) = (rest_o, rest_lse);
    }
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}
