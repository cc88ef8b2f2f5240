//! Our run of the 14 trees beside the peers'.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deft_workloads::{StepTree, StepWorkload};
use serde::Deserialize;

use super::sources::{Origin, Suite};

/// The grouping that is compared with the peers.
pub(super) const GROUPING: &str = "flatten";
/// The peer that is DeFT's own.
const DEFT: &str = "DeFT";

#[derive(Deserialize)]
struct Measured {
    workload: String,
    grouping: String,
    median_us: f64,
    partial_us: Option<f64>,
    bytes_kv: u64,
    bytes_issued: u64,
    bytes_unique: u64,
    floor_us: f64,
    shares: u32,
    max_rows: u32,
}

#[derive(Deserialize)]
struct Peer {
    workload: String,
    best_us: f64,
    #[serde(default)]
    peers_us: BTreeMap<String, f64>,
}

/// Our kernels timed by the peers' loop.
#[derive(Deserialize)]
struct Replay {
    median_us: BTreeMap<String, f64>,
}

/// All workloads that the peers' run has.
pub(super) struct Comparison {
    pub(super) ours: Origin,
    pub(super) peers: Origin,
    /// The most that the peers' loop measures more than ours for the same kernel, in microseconds.
    pub(super) handicap_us: f64,
    pub(super) rows: Vec<Row>,
}

/// One workload; times in microseconds a layer.
pub(super) struct Row {
    pub(super) workload: String,
    /// The least time that the memory's and the tensor cores' rates allow.
    pub(super) floor_us: f64,
    pub(super) ours_us: f64,
    /// Without the merge, if it was measured.
    pub(super) partial_us: Option<f64>,
    pub(super) peer_us: f64,
    /// DeFT's own kernels, if they were measured.
    pub(super) deft_us: Option<f64>,
    /// KV read over KV that there is.
    pub(super) reads: f64,
    pub(super) bytes_unique: u64,
    /// Floating-point operations of both products, as `workloads/trees.json` asks for them.
    pub(super) flops: u64,
    /// By grouping, in the run's order.
    pub(super) by_grouping: Vec<Grouped>,
}

/// One workload with one grouping.
pub(super) struct Grouped {
    pub(super) grouping: String,
    pub(super) us: f64,
    pub(super) bytes_issued: u64,
    pub(super) shares: u32,
    pub(super) max_rows: u32,
}

impl Comparison {
    /// From the texts of the files. Workloads are in the peers' order.
    pub(super) fn new(
        ours: &str,
        peers: &str,
        replay: &str,
        workloads: &[StepWorkload],
    ) -> Result<Self> {
        let run: Suite<Measured> = Suite::parse("h100-trees.json", ours)?;
        let peers: Suite<Peer> = Suite::parse("peers-h100.json", peers)?;
        let replay: Replay =
            serde_json::from_str(replay).context("docs/benchmarks/h100-pytorch-replay.json")?;
        let rows = peers.rows.iter().map(|peer| {
            let of_workload = || run.rows.iter().filter(|row| row.workload == peer.workload);
            let row = of_workload()
                .find(|row| row.grouping == GROUPING)
                .with_context(|| format!("our run lacks {} {GROUPING}", peer.workload))?;
            let workload = workloads.iter().find(|w| w.name == peer.workload);
            let workload =
                workload.with_context(|| format!("no workload is called {}", peer.workload))?;
            Ok(Row {
                workload: peer.workload.clone(),
                floor_us: row.floor_us,
                ours_us: row.median_us,
                partial_us: row.partial_us,
                peer_us: peer.best_us,
                deft_us: peer.peers_us.get(DEFT).copied(),
                reads: row.bytes_kv as f64 / row.bytes_unique as f64,
                bytes_unique: row.bytes_unique,
                flops: flops(workload),
                by_grouping: of_workload().map(Grouped::from).collect(),
            })
        });
        let rows: Vec<Row> = rows.collect::<Result<_>>()?;
        let more = rows.iter().filter_map(|row| {
            let us = replay.median_us.get(&row.workload)?;
            Some(us - row.ours_us)
        });
        Ok(Self {
            handicap_us: more.fold(0.0, f64::max),
            rows,
            ours: run.origin,
            peers: peers.origin,
        })
    }

    /// The best peer's time over ours, with `added_us` added to ours: the geometric mean.
    pub(super) fn mean_speedup(&self, added_us: f64) -> f64 {
        geometric_mean(self.rows.iter().map(|row| row.speedup(added_us)))
    }

    /// The same for DeFT's own kernels, and of how many rows.
    pub(super) fn mean_over_deft(&self, added_us: f64) -> (f64, usize) {
        let ratios: Vec<f64> = self
            .rows
            .iter()
            .filter_map(|row| Some(row.deft_us? / (row.ours_us + added_us)))
            .collect();
        (geometric_mean(ratios.iter().copied()), ratios.len())
    }
}

impl Row {
    /// The best peer's time over ours, with `added_us` added to ours.
    pub(super) fn speedup(&self, added_us: f64) -> f64 {
        self.peer_us / (self.ours_us + added_us)
    }

    /// What was measured with `grouping`.
    pub(super) fn with(&self, grouping: &str) -> Option<&Grouped> {
        self.by_grouping.iter().find(|row| row.grouping == grouping)
    }

    /// Floating-point operations a byte of unique KV.
    pub(super) fn intensity(&self) -> f64 {
        self.flops as f64 / self.bytes_unique as f64
    }

    /// TFLOP/s in `us` microseconds.
    pub(super) fn tflops(&self, us: f64) -> f64 {
        self.flops as f64 / us * 1e-6
    }

    /// GB/s of unique KV in `us` microseconds.
    pub(super) fn gb_per_s(&self, us: f64) -> f64 {
        self.bytes_unique as f64 / us * 1e-3
    }
}

impl From<&Measured> for Grouped {
    fn from(row: &Measured) -> Self {
        Self {
            grouping: row.grouping.clone(),
            us: row.median_us,
            bytes_issued: row.bytes_issued,
            shares: row.shares,
            max_rows: row.max_rows,
        }
    }
}

pub(super) fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| {
        (sum + value.ln(), count + 1)
    });
    (sum / f64::from(count.max(1))).exp()
}

/// Two operations for each element of K and of V, row of queries and token that it sees.
fn flops(workload: &StepWorkload) -> u64 {
    let heads = workload.heads;
    let tokens: u64 = workload.trees().iter().map(path_tokens).sum();
    4 * tokens * u64::from(heads.q_heads * heads.head_dim)
}

/// Tokens that all queries of a tree see together.
fn path_tokens(tree: &StepTree) -> u64 {
    let mut paths: Vec<u64> = Vec::with_capacity(tree.tokens().len());
    for (parent, &tokens) in tree.parents().iter().zip(tree.tokens()) {
        let before = parent.map_or(0, |parent| paths[parent as usize]);
        paths.push(before + u64::from(tokens));
    }
    tree.queries()
        .iter()
        .map(|&query| paths[query as usize])
        .sum()
}

/// Two workloads for tests, `a` and `b`.
#[cfg(test)]
pub(super) fn example() -> Comparison {
    let ours = r#"{"commit": "abc", "rows": [
        {"workload": "b", "grouping": "node", "median_us": 30, "bytes_kv": 9, "bytes_issued": 10, "bytes_unique": 3,
         "floor_us": 5, "shares": 2, "max_rows": 64},
        {"workload": "b", "grouping": "flatten", "median_us": 20, "bytes_kv": 6, "bytes_issued": 7, "bytes_unique": 3,
         "floor_us": 5, "shares": 2, "max_rows": 64},
        {"workload": "a", "grouping": "flatten", "median_us": 10, "partial_us": 8, "bytes_kv": 3, "bytes_issued": 4,
         "bytes_unique": 3, "floor_us": 2, "shares": 2, "max_rows": 64}]}"#;
    let peers = r#"{"source": "s", "rows": [{"workload": "a", "best_us": 10, "peers_us": {"DeFT": 40}},
        {"workload": "b", "best_us": 80}]}"#;
    let replay = r#"{"median_us": {"a": 14, "b": 21}}"#;
    let shape = r#""num_q_heads": 2, "num_kv_heads": 1, "head_dim": 64, "dtype": "bf16",
        "trees": [{"parents": [-1, 0, 0], "lens": [10, 2, 3]}]"#;
    let workloads = format!(r#"[{{"name": "a", {shape}}}, {{"name": "b", {shape}}}]"#);
    Comparison::new(
        ours,
        peers,
        replay,
        &StepWorkload::parse(&workloads).unwrap(),
    )
    .unwrap()
}

#[cfg(test)]
mod tests {
    use super::super::sources;
    use super::*;

    #[test]
    fn rows_meet_by_name_and_the_loops_largest_difference_can_be_added() {
        let comparison = example();
        let names: Vec<&str> = comparison.rows.iter().map(|row| &*row.workload).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(comparison.rows[1].reads, 2.0);
        assert_eq!(comparison.handicap_us, 4.0);
        assert!((comparison.mean_speedup(0.0) - 2.0).abs() < 1e-12);
        assert!((comparison.rows[0].speedup(4.0) - 10.0 / 14.0).abs() < 1e-12);
        assert_eq!(comparison.mean_over_deft(0.0), (4.0, 1));
        // Two queries see 12 and 13 tokens.
        assert_eq!(comparison.rows[0].flops, 4 * 25 * 128);
    }

    #[test]
    fn a_workload_that_was_not_measured_is_named() {
        let peers = r#"{"rows": [{"workload": "c", "best_us": 1}]}"#;
        let error = Comparison::new(r#"{"rows": []}"#, peers, r#"{"median_us": {}}"#, &[])
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "our run lacks c flatten");
    }

    #[test]
    fn operations_and_bytes_give_the_floor_that_was_written_with_the_times() {
        let run = sources::read("docs/benchmarks/h100-trees.json").unwrap();
        let run: Suite<Measured> = Suite::parse("h100-trees.json", &run).unwrap();
        let workloads = sources::read("workloads/trees.json").unwrap();
        for workload in StepWorkload::parse(&workloads).unwrap() {
            for row in run.rows.iter().filter(|row| row.workload == workload.name) {
                let memory = row.bytes_unique as f64 / 3_088e3;
                let floor = memory.max(flops(&workload) as f64 / 660e6);
                assert!(
                    (floor - row.floor_us).abs() < 1e-6 * floor,
                    "{}",
                    workload.name
                );
            }
        }
    }
}
