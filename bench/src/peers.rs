//! What the existing kernels take on the same workloads.

use anyhow::{Context, Result};
use serde::Deserialize;

/// A run of the peers on one device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Peers {
    pub(crate) source: String,
    pub(crate) date: String,
    pub(crate) device: String,
    pub(crate) rows: Vec<Peer>,
}

/// The peers on one workload.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Peer {
    pub(crate) workload: String,
    pub(crate) best_us: f64,
}

impl Peers {
    /// The run that comes with the program.
    pub(crate) fn embedded() -> Result<Self> {
        let text = include_str!("../../docs/benchmarks/peers-h100.json");
        serde_json::from_str(text).context("docs/benchmarks/peers-h100.json")
    }

    /// The best of all peers on `workload`, in microseconds.
    pub(crate) fn best_us(&self, workload: &str) -> Option<f64> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.workload == workload).map(|row| row.best_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_run_has_the_workloads_by_name() {
        let peers = Peers::embedded().unwrap();
        assert_eq!(peers.best_us("fewshot_4k_w20"), Some(34.6));
        assert_eq!(peers.best_us("no_such_workload"), None);
        assert!(peers.rows.iter().all(|row| row.best_us > 0.0));
    }
}
