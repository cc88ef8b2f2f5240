//! Our run of the 14 trees beside the peers', and the blocks of README.md and docs/performance.md about it.

use anyhow::{Context, Result};
use deft_workloads::StepWorkload;

use crate::Block;
use crate::data::{self, Row, Suite, Table, geometric_mean, number, or_dash};

/// The grouping that is compared with the peers.
pub(crate) const GROUPING: &str = "flatten";

/// All workloads that the peers' run has.
pub(crate) struct Comparison {
    pub(crate) run: Suite,
    pub(crate) peers: Suite,
    pub(crate) ampere: Suite,
    /// The most that the peers' loop measures more than ours for the same kernel, in microseconds.
    pub(crate) added_us: f64,
    pub(crate) rows: Vec<Tree>,
}

/// One workload; times in microseconds a layer.
pub(crate) struct Tree {
    pub(crate) workload: String,
    /// The least time that the memory's and the tensor cores' rates allow.
    pub(crate) floor_us: f64,
    pub(crate) us: f64,
    /// Without the merge, if it was measured.
    partial_us: Option<f64>,
    pub(crate) peer_us: f64,
    /// DeFT's own kernels, if they were measured.
    pub(crate) deft_us: Option<f64>,
    /// The kernels for GPUs before Hopper.
    ampere_us: f64,
    /// KV read over KV that there is.
    reads: f64,
    pub(crate) bytes_unique: f64,
    /// Floating-point operations of both products, as `workloads/trees.json` asks for them.
    pub(crate) flops: f64,
}

impl Tree {
    /// The best peer's time over ours, with `added_us` added to ours.
    pub(crate) fn speedup(&self, added_us: f64) -> f64 {
        self.peer_us / (self.us + added_us)
    }

    /// Floating-point operations a byte of unique KV.
    pub(crate) fn intensity(&self) -> f64 {
        self.flops / self.bytes_unique
    }

    /// TFLOP/s in `us` microseconds.
    pub(crate) fn tflops(&self, us: f64) -> f64 {
        self.flops / us * 1e-6
    }
}

impl Comparison {
    /// From docs/benchmarks. Workloads are in the peers' order.
    pub(crate) fn read() -> Result<Self> {
        let run = Suite::read("h100-trees.json")?;
        let peers = Suite::read("peers-h100.json")?;
        let ampere = Suite::read("h100-trees-sm80.json")?;
        let replay = Suite::read("h100-pytorch-replay.json")?;
        let workloads = StepWorkload::parse(&data::read("workloads/trees.json")?)?;
        let tree = |peer: &data::Row| {
            let name = peer.text("workload");
            let row = run.row(name, GROUPING)?;
            let shape = workloads.iter().find(|shape| shape.name == name);
            let shape = shape.with_context(|| format!("no workload is called {name}"))?;
            Ok(Tree {
                workload: name.to_owned(),
                floor_us: row.get("floor_us")?,
                us: row.get("median_us")?,
                partial_us: row.number("partial_us"),
                peer_us: peer.get("best_us")?,
                deft_us: peer.0["peers_us"]["DeFT"].as_f64(),
                ampere_us: ampere.row(name, GROUPING)?.get("median_us")?,
                reads: row.get("bytes_kv")? / row.get("bytes_unique")?,
                bytes_unique: row.get("bytes_unique")?,
                flops: flops(shape),
            })
        };
        let rows: Vec<Tree> = peers.rows.iter().map(tree).collect::<Result<_>>()?;
        let more = rows.iter().filter_map(|row| {
            let us = replay.all["median_us"][&row.workload].as_f64()?;
            Some(us - row.us)
        });
        let added_us = more.fold(0.0, f64::max);
        Ok(Self { run, peers, ampere, added_us, rows })
    }

    /// The blocks of README.md and docs/performance.md.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        vec![
            ("summary", self.summary()),
            ("comparison", self.comparison()),
            ("groupings", self.groupings().markdown()),
            ("drafts", self.drafts().markdown()),
            ("sm_80", self.ampere_summary()),
        ]
    }

    pub(crate) fn mean_speedup(&self, added_us: f64) -> f64 {
        geometric_mean(self.rows.iter().map(|row| row.speedup(added_us)))
    }

    /// Time of DeFT's own kernels over ours, and of how many rows.
    pub(crate) fn mean_over_deft(&self, added_us: f64) -> (f64, usize) {
        let ratio = |row: &Tree| Some(row.deft_us? / (row.us + added_us));
        let ratios: Vec<f64> = self.rows.iter().filter_map(ratio).collect();
        (geometric_mean(ratios.iter().copied()), ratios.len())
    }

    /// The result in words, for README.md.
    fn summary(&self) -> String {
        let added = self.added_us;
        let slower = |added: f64| {
            let rows = self.rows.iter().filter(|row| row.speedup(added) < 1.0);
            let names = rows.map(|row| format!("`{}` at {:.2}x", row.workload, row.speedup(added)));
            match names.collect::<Vec<String>>() {
                names if names.is_empty() => "no row is slower".to_owned(),
                names => format!("slower: {}", names.join(", ")),
            }
        };
        format!(
            "{:.2} times as fast as the best peer of each row (geometric mean of {}; {}).\n\
             Through PyTorch's graph replays, as the peers were timed, our kernels take up to {added:.1} us more. With\n\
             that added to every time of ours it is {:.2} times ({}).\n",
            self.mean_speedup(0.0),
            self.rows.len(),
            slower(0.0),
            self.mean_speedup(added),
            slower(added),
        )
    }

    /// The table of all rows, how DeFT's own kernels compare, and of what commit all that is.
    fn comparison(&self) -> String {
        let (deft, rows) = self.mean_over_deft(0.0);
        let commit = self.run.all["commit"].as_str();
        format!(
            "{}\nDeFT's own kernels have times for {rows} of the rows: {deft:.2} times ours (geometric mean), {:.2} with those\n\
             {:.1} us added.{}\n",
            self.table().markdown(),
            self.mean_over_deft(self.added_us).0,
            self.added_us,
            commit.map_or(String::new(), |commit| format!(
                " Ours were measured at commit `{commit}`."
            ))
        )
    }

    pub(crate) fn table(&self) -> Table {
        let added = self.added_us;
        let head = "workload | floor | ours | without merge | KV read | best peer | speedup";
        let mut table = Table::new(&format!("{head} | ours + {added:.1} | speedup | DeFT"));
        for row in &self.rows {
            table.row([
                row.workload.clone(),
                format!("{:.1}", row.floor_us),
                format!("{:.1}", row.us),
                or_dash(row.partial_us, |us| format!("{us:.1}")),
                format!("{:.2}x", row.reads),
                format!("{:.1}", row.peer_us),
                format!("{:.2}x", row.speedup(0.0)),
                format!("{:.1}", row.us + added),
                format!("{:.2}x", row.speedup(added)),
                or_dash(row.deft_us, |us| format!("{us:.0}")),
            ]);
        }
        let mean = |added| format!("{:.2}x", self.mean_speedup(added));
        let (plain, with) = (mean(0.0), mean(added));
        table.row(["geometric mean", "", "", "", "", "", &plain, "", &with, ""]);
        table
    }

    /// Times with each grouping that the run has, and how they compare with [`GROUPING`]'s.
    pub(crate) fn groupings(&self) -> Table {
        let names = self.run.distinct("grouping");
        let mut table = Table::new(&format!("workload | {}", names.join(" | ")));
        for row in &self.rows {
            let cell = |&name: &&str| {
                let us = self.run.row(&row.workload, name).ok();
                or_dash(us.and_then(|us| us.number("median_us")), |us| match name {
                    GROUPING => format!("{us:.1}"),
                    _ => format!("{us:.1} ({:.2}x)", us / row.us),
                })
            };
            let cells: Vec<String> = names.iter().map(cell).collect();
            table.row([vec![row.workload.clone()], cells].concat());
        }
        table
    }

    /// Drafts of trees beside the one peer that verifies such and nothing else; microseconds.
    pub(crate) fn drafts(&self) -> Table {
        let mut table = Table::new("nodes of the draft | context | JetSpec | ours | speedup");
        let rows = self.peers.all["draft_verification"]["rows"].as_array();
        for row in rows.into_iter().flatten().cloned().map(Row) {
            let times = [row.number("jetspec_us"), row.number("deft_us")];
            let speedup = times[0].zip(times[1]).map(|(theirs, ours)| theirs / ours);
            table.row([
                or_dash(row.number("nodes"), number),
                row.text("context").to_owned(),
                or_dash(times[0], number),
                or_dash(times[1], number),
                or_dash(speedup, |speedup| format!("{speedup:.1}x")),
            ]);
        }
        table
    }

    /// The kernels for GPUs before Hopper on the same GPU, in words.
    fn ampere_summary(&self) -> String {
        let speedups = || self.rows.iter().map(|row| row.peer_us / row.ampere_us);
        let ratios = || self.rows.iter().map(|row| row.ampere_us / row.us);
        format!(
            "On the H100 they are {:.2}x the best peers (geometric mean of the {} rows, {} of them slower) and take\n\
             between {:.2} and {:.2} times as long as the Hopper kernels.\n",
            geometric_mean(speedups()),
            self.rows.len(),
            speedups().filter(|speedup| *speedup < 1.0).count(),
            ratios().fold(f64::INFINITY, f64::min),
            ratios().fold(0.0, f64::max),
        )
    }

    pub(crate) fn ampere_table(&self) -> Table {
        let mut table =
            Table::new("workload | sm_80 kernels | Hopper kernels | ratio | best peer | speedup");
        for row in &self.rows {
            table.row([
                row.workload.clone(),
                format!("{:.1}", row.ampere_us),
                format!("{:.1}", row.us),
                format!("{:.2}", row.ampere_us / row.us),
                format!("{:.1}", row.peer_us),
                format!("{:.2}x", row.peer_us / row.ampere_us),
            ]);
        }
        table
    }
}

/// Two operations for each element of K and of V, row of queries and token that it sees.
fn flops(workload: &StepWorkload) -> f64 {
    let mut seen = 0;
    for tree in workload.trees() {
        let mut paths: Vec<u64> = Vec::with_capacity(tree.tokens().len());
        for (parent, &tokens) in tree.parents().iter().zip(tree.tokens()) {
            paths.push(parent.map_or(0, |parent| paths[parent as usize]) + u64::from(tokens));
        }
        seen += tree.queries().iter().map(|&query| paths[query as usize]).sum::<u64>();
    }
    let heads = workload.heads;
    4.0 * seen as f64 * f64::from(heads.q_heads * heads.head_dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_and_bytes_give_the_floor_that_was_written_with_the_times() {
        for row in Comparison::read().unwrap().rows {
            let floor = (row.bytes_unique / 3_088e3).max(row.flops / 660e6);
            assert!((floor - row.floor_us).abs() < 1e-6 * floor, "{}", row.workload);
        }
    }

    #[test]
    fn rows_that_are_slower_are_named_and_the_loops_difference_can_be_added() {
        let mut comparison = Comparison::read().unwrap();
        comparison.rows.truncate(2);
        for (row, peer_us) in comparison.rows.iter_mut().zip([10.0, 40.0]) {
            (row.us, row.peer_us, row.workload) = (10.0, peer_us, "a".to_owned());
        }
        comparison.added_us = 4.0;
        let text = comparison.summary();
        assert!(text.contains("2.00 times") && text.contains("no row is slower"), "{text}");
        assert!(text.contains("slower: `a` at 0.71x"), "{text}");
    }

    #[test]
    fn drafts_are_shown_beside_the_peer_that_verifies_them() {
        let text = Comparison::read().unwrap().drafts().markdown();
        assert_eq!(text.lines().count(), 2 + 12, "{text}");
        assert!(text.contains("| 64 | 4k | 188 | 18.3 | 10.3x |"), "{text}");
    }

    #[test]
    fn a_workload_that_was_not_measured_is_named() {
        let suite = Suite::parse("f.json", r#"{"rows": []}"#).unwrap();
        let error = suite.row("c", GROUPING).err().unwrap().to_string();
        assert_eq!(error, "f.json lacks c flatten");
    }
}
