//! The kernels for GPUs before Hopper, on the same GPU as the others.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::sources::{Origin, Suite};
use super::table::Table;
use super::trees::{Comparison, GROUPING, geometric_mean};

#[derive(Deserialize)]
struct Measured {
    workload: String,
    grouping: String,
    median_us: f64,
}

/// The `sm_80` kernels beside Hopper's and the best peers.
pub(super) struct Ampere {
    pub(super) origin: Origin,
    /// In the comparison's order.
    rows: Vec<Row>,
}

struct Row {
    workload: String,
    us: f64,
    hopper_us: f64,
    peer_us: f64,
}

impl Ampere {
    /// From the text of the run with `--arch sm_80`, for all workloads of `comparison`.
    pub(super) fn new(text: &str, comparison: &Comparison) -> Result<Self> {
        let run: Suite<Measured> = Suite::parse("h100-trees-sm80.json", text)?;
        let row = |other: &super::trees::Row| {
            let mut own = run.rows.iter().filter(|row| row.grouping == GROUPING);
            let own = own.find(|row| row.workload == other.workload);
            let own = own.with_context(|| format!("the sm_80 run lacks {}", other.workload))?;
            Ok(Row {
                workload: other.workload.clone(),
                us: own.median_us,
                hopper_us: other.ours_us,
                peer_us: other.peer_us,
            })
        };
        Ok(Self {
            rows: comparison.rows.iter().map(row).collect::<Result<_>>()?,
            origin: run.origin,
        })
    }

    /// The result in words.
    pub(super) fn summary(&self) -> String {
        let speedups = || self.rows.iter().map(|row| row.peer_us / row.us);
        let slower = speedups().filter(|speedup| *speedup < 1.0).count();
        let ratios = || self.rows.iter().map(|row| row.us / row.hopper_us);
        format!(
            "On the H100 they are {:.2}x the best peers (geometric mean of the {} rows, {slower} of them slower) and take\n\
             between {:.2} and {:.2} times as long as the Hopper kernels.\n",
            geometric_mean(speedups()),
            self.rows.len(),
            ratios().fold(f64::INFINITY, f64::min),
            ratios().fold(0.0, f64::max),
        )
    }

    pub(super) fn table(&self) -> Table {
        let mut table = Table::new([
            "workload",
            "sm_80 kernels",
            "Hopper kernels",
            "ratio",
            "best peer",
            "speedup",
        ]);
        for row in &self.rows {
            table.row([
                row.workload.clone(),
                format!("{:.1}", row.us),
                format!("{:.1}", row.hopper_us),
                format!("{:.2}", row.us / row.hopper_us),
                format!("{:.1}", row.peer_us),
                format!("{:.2}x", row.peer_us / row.us),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::super::trees::example;
    use super::*;

    #[test]
    fn older_kernels_are_held_against_the_same_peers_and_against_ours() {
        let text = r#"{"rows": [{"workload": "a", "grouping": "flatten", "median_us": 20},
            {"workload": "b", "grouping": "flatten", "median_us": 40}]}"#;
        let ampere = Ampere::new(text, &example()).unwrap();
        let summary = ampere.summary();
        assert!(
            summary
                .contains("1.00x the best peers (geometric mean of the 2 rows, 1 of them slower)"),
            "{summary}"
        );
        assert!(summary.contains("between 2.00 and 2.00 times"), "{summary}");
        let table = ampere.table().markdown();
        assert!(
            table.contains("| b | 40.0 | 20.0 | 2.00 | 80.0 | 2.00x |"),
            "{table}"
        );
        let error = Ampere::new(r#"{"rows": []}"#, &example()).err().unwrap();
        assert_eq!(error.to_string(), "the sm_80 run lacks a");
    }
}
