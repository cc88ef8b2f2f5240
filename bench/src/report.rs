//! What the measurements of `trees` say: a row, and the table on screen.

use deft::plan::Candidates;
use serde::{Deserialize, Serialize};

use crate::GroupingArg;
use crate::document::Document;
use crate::peers::Peers;
use crate::stats::{Spread, geometric_mean};

/// GB/s at which randomly ordered 32 KiB pages stream on an H100.
pub(crate) const STREAM_GB_PER_S: f64 = 3_088.0;
/// TFLOP/s of dense 16-bit products that a good kernel reaches on an H100.
const TFLOP_PER_S: f64 = 660.0;
/// The empty graph's microseconds in the bound that every row is held against.
const BOUND_LAUNCH_US: f64 = 4.8;
/// Slack of that bound.
const BOUND_FACTOR: f64 = 1.25;

/// One workload with one grouping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) grouping: String,
    /// Which plans flatten chose from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) candidates: Candidates,
    pub(crate) median_us: f64,
    pub(crate) p20_us: f64,
    pub(crate) p80_us: f64,
    /// Median without the merge, if that was asked for.
    pub(crate) partial_us: Option<f64>,
    /// Medians with the kernels' code in the caches, whole and without the merge, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warm_code_us: Option<[f64; 2]>,
    /// KV of all tokens once.
    pub(crate) bytes_unique: u64,
    /// All that the plan reads, whether DRAM or a cache serves it.
    pub(crate) bytes_issued: u64,
    /// K and V of that.
    pub(crate) bytes_kv: u64,
    pub(crate) bytes_written: u64,
    pub(crate) max_rel_l2: f64,
    pub(crate) max_lse_error: f64,
    /// `max(bytes_unique / 3,088 GB/s, FLOPs / 660 TFLOP/s)`.
    pub(crate) floor_us: f64,
    pub(crate) best_peer_us: Option<f64>,
    pub(crate) shares: u32,
    pub(crate) max_rows: u32,
    pub(crate) items: usize,
    pub(crate) partial_slots: u32,
    pub(crate) plan_us: f64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The least time that reading and computing take.
pub(crate) fn floor_us(bytes_unique: u64, flops: u64) -> f64 {
    let memory = bytes_unique as f64 / (STREAM_GB_PER_S * 1e3);
    let compute = flops as f64 / (TFLOP_PER_S * 1e6);
    memory.max(compute)
}

impl Row {
    fn bound_us(&self) -> f64 {
        (BOUND_LAUNCH_US + self.floor_us) * BOUND_FACTOR
    }

    pub(crate) fn set_time(&mut self, time: Spread) {
        self.median_us = time.median;
        self.p20_us = time.p20;
        self.p80_us = time.p80;
    }

    /// Which plan it is: the grouping, or what flatten chose from if not from all.
    pub(crate) fn plans(&self) -> String {
        match self.candidates {
            only if only != Candidates::All && self.grouping == GroupingArg::Flatten.name() => {
                format!("{only:?}").to_lowercase()
            }
            _ => self.grouping.clone(),
        }
    }

    /// The row of the table.
    pub(crate) fn line(&self) -> String {
        let peer = match self.best_peer_us {
            Some(us) => format!("{us:8.1} {:6.2}x", us / self.median_us),
            None => format!("{:>8} {:>7}", "-", "-"),
        };
        let partial = match self.partial_us {
            Some(us) => format!("; {us:.2} us without the merge"),
            None => String::new(),
        };
        let warm_code = match self.warm_code_us {
            Some([whole, part]) => {
                format!("; code warm: {whole:.2} us, {part:.2} without the merge")
            }
            None => String::new(),
        };
        format!(
            "{:24} {:10} {:6} {:5} {:8.2} {:7.2}-{:<7.2} {:7.1} {:7.1} {:6.2} {peer} {:8.1e} {:5} {:5} {:5.2}{partial}{warm_code}",
            self.workload,
            self.plans(),
            self.shares,
            self.max_rows,
            self.median_us,
            self.p20_us,
            self.p80_us,
            self.floor_us,
            self.bound_us(),
            self.median_us / self.bound_us(),
            self.max_rel_l2,
            self.items,
            self.partial_slots,
            self.bytes_kv as f64 / self.bytes_unique as f64,
        )
    }
}

/// The table's head.
pub(crate) const HEADER: &str = "workload                 grouping   shares  rows       us     p20-p80       floor   bound  ratio  peer us speedup   rel L2 items slots reads";

/// What to read under the table.
pub(crate) fn summary(run: &Document<Row>, peers: &Peers) -> String {
    let mut text = format!(
        "us: median of replayed CUDA graphs, L2 cold; bound: ({BOUND_LAUNCH_US} + floor) x \
         {BOUND_FACTOR}; reads: KV read / KV unique; empty graph here {:.2} us\n",
        run.empty_graph_us.unwrap_or(0.0)
    );
    text += &format!(
        "peer us: best of the peers, {}, {}: {}\n",
        peers.device, peers.date, peers.source
    );
    let mut groupings: Vec<&str> = run.rows.iter().map(|row| &*row.grouping).collect();
    groupings.dedup();
    groupings.sort_unstable();
    groupings.dedup();
    for grouping in groupings {
        let rows = || run.rows.iter().filter(|row| row.grouping == grouping);
        let speedups: Vec<f64> =
            rows().filter_map(|row| Some(row.best_peer_us? / row.median_us)).collect();
        let ratios: Vec<f64> = rows().map(|row| row.median_us / row.bound_us()).collect();
        let slower = speedups.iter().filter(|&&speedup| speedup < 1.0).count();
        let within = ratios.iter().filter(|&&ratio| ratio <= 1.0).count();
        if let Some(speedup) = geometric_mean(&speedups) {
            text += &format!(
                "{grouping}: {speedup:.2}x the best peer (geometric mean of {}), {slower} rows \
                 slower; {within} of {} rows within the bound\n",
                speedups.len(),
                ratios.len()
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_bound_problem_takes_its_bytes_and_a_large_one_its_flops() {
        assert!((floor_us(32_768_000, 0) - 10.61).abs() < 0.01);
        assert!((floor_us(1, 660_000_000) - 1.0).abs() < 1e-9);
    }
}
