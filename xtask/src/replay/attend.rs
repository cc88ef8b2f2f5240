//! A sampled step: K and V go in, attention runs with every plan, and rows of it are checked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deft::KvElement;
use deft::plan::HeadShape;
use deft_tests::reference::attention::{ReferenceParams, attend_row};

use super::check::{Expected, tolerances};
use super::data::{self, Kind};
use super::session::{Buffers, Node, Session, Track};
use super::trace::Step;

/// Rows, each a query and a head, that a step compares with f64.
const CHECKED_ROWS: usize = 4;
/// Tokens whose K and V are written at once.
const CHUNK: u32 = 256;
/// Times that attention is run; the fastest counts.
const REPEATS: u32 = 2;

impl<T: KvElement> Session<'_, T> {
    /// Attention with every plan, a sample of the rows compared with f64.
    pub(super) fn attend(&mut self, index: u32, step: &Step) -> Result<()> {
        self.write(step)?;
        let HeadShape {
            q_heads, head_dim, ..
        } = self.trace.heads;
        let head_dim = head_dim as usize;
        let row = q_heads as usize * head_dim;
        let Buffers { q, out, lse, .. } = &mut self.buffers;
        q.resize(step.queries.len() * row, T::default());
        for (query, row) in q.chunks_exact_mut(row).enumerate() {
            data::fill(Kind::Query, query_id(index, query), head_dim, row);
        }
        lse.resize(step.queries.len() * q_heads as usize, 0.0);
        out.resize(q.len(), T::default());
        let expected = self.expected(index, step)?;
        self.checked_rows += expected.len() as u64;
        // Each grouping is first in turn, so that none always finds what another has brought to the caches.
        let count = self.tracks.len();
        for at in (0..count).map(|at| (at + index as usize) % count) {
            let fastest = self.attend_with(at)?;
            let Track {
                grouping, tally, ..
            } = &mut self.tracks[at];
            tally.attention += fastest;
            for row in &expected {
                let heads = q_heads as usize;
                let (output, lse) = row.errors(heads, &self.buffers.out, &self.buffers.lse);
                tally.worst_output = tally.worst_output.max(output);
                tally.worst_lse = tally.worst_lse.max(lse);
                let (most_output, most_lse) = tolerances(T::DTYPE);
                ensure!(
                    output <= most_output && lse <= most_lse,
                    "step {}, {grouping:?}: query of node {}, head {}, is off by {output:.1e} (relative \
                     L2, at most {most_output:.0e}), its LSE by {lse:.1e} (at most {most_lse:.0e})",
                    index + 1,
                    step.queries[row.query],
                    row.head
                );
            }
        }
        Ok(())
    }

    /// Runs attention with one grouping's plan into poisoned memory.
    fn attend_with(&mut self, at: usize) -> Result<Duration> {
        let plan = self.tracks[at].plan.as_ref().context("no plan was made")?;
        let mut fastest = Duration::MAX;
        for _ in 0..REPEATS {
            let Buffers { q, out, lse, .. } = &mut self.buffers;
            out.fill(T::from_f32(f32::NAN));
            lse.fill(f32::NAN);
            let started = Instant::now();
            self.cache.attend_with_lse(0, plan, q, out, lse)?;
            fastest = fastest.min(started.elapsed());
        }
        Ok(fastest)
    }

    /// Writes K and V of all tokens that are new since the last sampled step: those of the plan's leaves
    /// that came last as a decode step would.
    fn write(&mut self, step: &Step) -> Result<()> {
        let mut last = vec![0; self.nodes.len()];
        for &node in &step.queries {
            last[node as usize] = 1;
        }
        let lengths = |node: &Node| node.tokens.len() as u32;
        let all_hold = |node: &u32| {
            self.nodes[*node as usize]
                .as_ref()
                .is_some_and(|n| lengths(n) > 0)
        };
        let as_step = step.queries.iter().all(all_hold);
        for (node, last) in self.nodes.iter_mut().zip(last) {
            let Some(node) = node else { continue };
            let end = lengths(node);
            let bulk = if as_step { end - last } else { end };
            let buffers = &mut self.buffers;
            while node.written < bulk {
                let tokens = node.written..bulk.min(node.written + CHUNK);
                let ids = &node.tokens[tokens.start as usize..tokens.end as usize];
                buffers.fill_kv(self.trace.heads, ids);
                let (k, v) = (&buffers.k, &buffers.v);
                node.written = tokens.end;
                self.cache.append_tokens(0, node.key, tokens, k, v)?;
            }
            node.written = end;
        }
        if as_step {
            let ids = step
                .queries
                .iter()
                .flat_map(|&node| &self.nodes[node as usize]);
            let ids: Vec<u64> = ids.filter_map(|node| node.tokens.last().copied()).collect();
            self.buffers.fill_kv(self.trace.heads, &ids);
            let plan = self.tracks[0].plan.as_ref().context("no plan was made")?;
            self.cache
                .append(0, plan, &self.buffers.k, &self.buffers.v)?;
        }
        Ok(())
    }

    /// Attention by its definition for a few rows, spread over queries and heads. Who sees what comes from
    /// the trace: the forest has no say.
    fn expected(&self, index: u32, step: &Step) -> Result<Vec<Expected>> {
        let HeadShape {
            q_heads,
            kv_heads,
            head_dim,
        } = self.trace.heads;
        let (q_heads, dim) = (q_heads as usize, head_dim as usize);
        let params = ReferenceParams {
            q_heads,
            kv_heads: kv_heads as usize,
            head_dim: dim,
            scale: self.cache.config().params().scale.into(),
            soft_cap: None,
        };
        let rows = CHECKED_ROWS.min(step.queries.len() * q_heads);
        let mut expected = Vec::with_capacity(rows);
        for row in 0..rows {
            let query = row * step.queries.len() / rows;
            let head = (row * q_heads / rows + index as usize) % q_heads;
            let kv_head = head / (q_heads / kv_heads as usize);
            let exact = |kind, id, head| data::exact::<T>(kind, id, head, dim);
            let tokens = self.seen(step.queries[query])?;
            let kv: Vec<_> = tokens
                .iter()
                .map(|&id| {
                    (
                        exact(Kind::Key, id, kv_head),
                        exact(Kind::Value, id, kv_head),
                    )
                })
                .collect();
            let kv: Vec<_> = kv
                .iter()
                .map(|(k, v)| (k.as_slice(), v.as_slice()))
                .collect();
            let q = exact(Kind::Query, query_id(index, query), head);
            let (out, lse) = attend_row(&params, &q, &kv);
            expected.push(Expected {
                query,
                head,
                out,
                lse,
            });
        }
        Ok(expected)
    }

    /// Tokens that a query at `node` sees.
    fn seen(&self, node: u32) -> Result<Vec<u64>> {
        let mut tokens = Vec::new();
        let mut next = Some(node);
        while let Some(node) = next {
            let above = self.nodes[node as usize].as_ref();
            tokens.extend(
                &above
                    .with_context(|| format!("node {node} is not there"))?
                    .tokens,
            );
            next = self.trace.parents[node as usize];
        }
        Ok(tokens)
    }
}

impl<T: KvElement> Buffers<T> {
    /// K and V of `ids`, `[tokens, kv_heads, head_dim]` each.
    fn fill_kv(&mut self, heads: HeadShape, ids: &[u64]) {
        let dim = heads.head_dim as usize;
        let row = heads.kv_heads as usize * dim;
        for (kind, rows) in [(Kind::Key, &mut self.k), (Kind::Value, &mut self.v)] {
            rows.resize(ids.len() * row, T::default());
            for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(row)) {
                data::fill(kind, id, dim, row);
            }
        }
    }
}

fn query_id(step: u32, query: usize) -> u64 {
    u64::from(step) << 16 | query as u64
}
