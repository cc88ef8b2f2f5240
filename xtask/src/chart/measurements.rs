//! Our run beside the peers'.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The grouping that is compared with the peers.
pub(super) const GROUPING: &str = "flatten";

/// What `deft-bench trees --json` writes.
#[derive(Deserialize)]
struct Run {
    commit: String,
    rows: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    workload: String,
    grouping: String,
    median_us: f64,
    partial_us: Option<f64>,
    bytes_kv: u64,
    bytes_unique: u64,
    floor_us: f64,
}

#[derive(Deserialize)]
struct Peers {
    rows: Vec<Peer>,
}

/// Our kernels timed by the peers' loop.
#[derive(Deserialize)]
struct Replay {
    median_us: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Peer {
    workload: String,
    best_us: f64,
}

/// All workloads that both runs have.
pub(super) struct Comparison {
    /// Commit that was measured.
    pub(super) commit: String,
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
    /// KV read over KV that there is.
    pub(super) reads: f64,
    /// Times by grouping, in the run's order.
    pub(super) by_grouping: Vec<(String, f64)>,
}

impl Comparison {
    /// From the texts of the three files. Workloads are in the peers' order.
    pub(super) fn new(ours: &str, peers: &str, replay: &str) -> Result<Self> {
        let run: Run = serde_json::from_str(ours).context("our run")?;
        let peers: Peers = serde_json::from_str(peers).context("the peers' run")?;
        let replay: Replay =
            serde_json::from_str(replay).context("our kernels in the peers' loop")?;
        let rows = peers.rows.iter().map(|peer| {
            let of_workload = || run.rows.iter().filter(|row| row.workload == peer.workload);
            let row = of_workload()
                .find(|row| row.grouping == GROUPING)
                .with_context(|| format!("our run lacks {} {GROUPING}", peer.workload))?;
            Ok(Row {
                workload: peer.workload.clone(),
                floor_us: row.floor_us,
                ours_us: row.median_us,
                partial_us: row.partial_us,
                peer_us: peer.best_us,
                reads: row.bytes_kv as f64 / row.bytes_unique as f64,
                by_grouping: of_workload()
                    .map(|row| (row.grouping.clone(), row.median_us))
                    .collect(),
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
            commit: run.commit,
        })
    }

    /// The best peer's time over ours, with `added_us` added to ours: the geometric mean.
    pub(super) fn mean_speedup(&self, added_us: f64) -> f64 {
        let logarithms = self.rows.iter().map(|row| row.speedup(added_us).ln());
        (logarithms.sum::<f64>() / self.rows.len() as f64).exp()
    }
}

impl Row {
    /// The best peer's time over ours, with `added_us` added to ours.
    pub(super) fn speedup(&self, added_us: f64) -> f64 {
        self.peer_us / (self.ours_us + added_us)
    }
}

#[cfg(test)]
pub(super) const OURS: &str = r#"{"commit": "abc", "rows": [
    {"workload": "b", "grouping": "node", "median_us": 30, "bytes_kv": 9, "bytes_unique": 3, "floor_us": 5},
    {"workload": "b", "grouping": "flatten", "median_us": 20, "bytes_kv": 6, "bytes_unique": 3, "floor_us": 5},
    {"workload": "a", "grouping": "flatten", "median_us": 10, "partial_us": 8, "bytes_kv": 3, "bytes_unique": 3,
     "floor_us": 2}]}"#;
#[cfg(test)]
pub(super) const PEERS: &str = r#"{"rows": [
    {"workload": "a", "best_us": 10}, {"workload": "b", "best_us": 80}]}"#;

#[cfg(test)]
pub(super) const REPLAY: &str = r#"{"median_us": {"a": 14, "b": 21}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_meet_by_name_and_the_loops_largest_difference_can_be_added() {
        let comparison = Comparison::new(OURS, PEERS, REPLAY).unwrap();
        let names: Vec<&str> = comparison.rows.iter().map(|row| &*row.workload).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(comparison.rows[1].reads, 2.0);
        assert_eq!(comparison.handicap_us, 4.0);
        assert!((comparison.mean_speedup(0.0) - 2.0).abs() < 1e-12);
        assert!((comparison.rows[0].speedup(4.0) - 10.0 / 14.0).abs() < 1e-12);
    }

    #[test]
    fn a_workload_that_was_not_measured_is_named() {
        let peers = PEERS.replace("\"a\"", "\"c\"");
        let error = Comparison::new(OURS, &peers, REPLAY).err().unwrap();
        assert_eq!(error.to_string(), "our run lacks c flatten");
    }
}
