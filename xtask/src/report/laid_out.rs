//! A tree of `workloads/trees.json` with its plans: who reads what, and who works when.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deft::plan::{CostModel, Grouping, Plan, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_workloads::StepWorkload;
use kernels_gpu::abi::NONE;

use super::trees::Row;

/// A long prompt that all share, and short branches: the plans show what balance is.
pub(super) const STAR: &str = "fewshot_4k_w20";
/// A tree with nodes that from 1 to 64 queries share.
pub(super) const TREE: &str = "binary_depth6";
/// The groupings that are laid over the SMs.
const GROUPINGS: [(Grouping, &str); 3] = [
    (Grouping::Node, "node"),
    (Grouping::NodeChunk, "node-chunk"),
    (Grouping::Flatten, "flatten"),
];

/// A tree and its plans.
pub(super) struct LaidOut {
    pub(super) workload: StepWorkload,
    pub(super) view: TreeView,
    pub(super) schedules: Vec<Schedule>,
}

/// A plan over time.
pub(super) struct Schedule {
    pub(super) grouping: &'static str,
    /// What each SM of a KV head does, in order.
    pub(super) shares: Vec<Vec<Part>>,
    /// Microseconds that were measured, both kernels.
    pub(super) measured_us: f64,
}

/// Something that an SM does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) what: What,
    pub(super) ns: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Beginning and ending a work item.
    Fixed,
    /// Reading, and computing with, a node that so many queries share.
    Read(u32),
    /// Leaving partial results, which are merged.
    Partial,
}

impl LaidOut {
    /// The tree `name` with the plans that its row was measured with.
    pub(super) fn new(name: &str, workloads: &[StepWorkload], rows: &[Row]) -> Result<Self> {
        let workload = workloads.iter().find(|workload| workload.name == name);
        let row = rows.iter().find(|row| row.workload == name);
        let pair = workload.zip(row);
        let (workload, row) =
            pair.with_context(|| format!("no {name} in workloads/trees.json and the runs"))?;
        let built = workload.build(0)?;
        let view = built.forest.view(&built.queries)?;
        let lengths = built.forest.lengths();
        let schedules = GROUPINGS.iter().map(|&(grouping, name)| {
            let measured = row
                .with(name)
                .with_context(|| format!("our run lacks {} {name}", workload.name))?;
            let heads = workload.heads;
            let mut config = PlanConfig::new(
                grouping,
                heads.group_size(),
                heads.head_dim,
                measured.shares,
            );
            config.max_rows = measured.max_rows;
            let plan = Planner::new(config)?.plan(&view)?;
            Ok(Schedule {
                grouping: name,
                shares: parts(&plan, &config, &view, lengths),
                measured_us: measured.us,
            })
        });
        Ok(Self {
            schedules: schedules.collect::<Result<_>>()?,
            view,
            workload: workload.clone(),
        })
    }
}

impl Schedule {
    fn totals(&self) -> impl Iterator<Item = f64> {
        self.shares
            .iter()
            .map(|parts| parts.iter().map(|part| part.ns).sum())
    }

    /// When the last SM is through.
    pub(super) fn end_ns(&self) -> f64 {
        self.totals().fold(0.0, f64::max)
    }

    /// Number of work items.
    pub(super) fn items(&self) -> usize {
        let parts = self.shares.iter().flatten();
        parts.filter(|part| part.what == What::Fixed).count()
    }

    /// What every SM would take if all took the same.
    pub(super) fn mean_ns(&self) -> f64 {
        self.totals().sum::<f64>() / self.shares.len().max(1) as f64
    }
}

/// What each share does. How long a share takes is the planner's; within it, parts are as long as the
/// constants of the cost model make them, next to each other.
fn parts(plan: &Plan, config: &PlanConfig, view: &TreeView, lengths: &[u32]) -> Vec<Vec<Part>> {
    let sharers: BTreeMap<u32, u32> = view
        .runs
        .iter()
        .flat_map(|run| {
            let pages = &view.pages[run.pages.start as usize..run.pages.end as usize];
            pages.iter().map(|&page| (page, run.queries.len() as u32))
        })
        .collect();
    let share = |(index, &total): (u32, &u64)| {
        let mut parts = Vec::new();
        for item in plan.share(index).items() {
            let rows = item.record.query_count * config.group_size;
            parts.push(Part {
                what: What::Fixed,
                ns: config.cost.item_ns,
            });
            for segment in item.segments {
                let length = lengths
                    .get(segment.length_slot as usize)
                    .copied()
                    .unwrap_or(0);
                let what = item
                    .pages(segment)
                    .first()
                    .and_then(|page| sharers.get(page));
                parts.push(Part {
                    what: What::Read(what.copied().unwrap_or(1)),
                    ns: read_ns(config, rows, segment.tokens_at(length)),
                });
            }
            if item.record.partial_slot != NONE {
                let bytes = 2.0 * 4.0 * f64::from(rows) * f64::from(config.head_dim + 1);
                let ns = bytes / config.cost.partial_bytes_per_ns;
                parts.push(Part {
                    what: What::Partial,
                    ns,
                });
            }
        }
        let sum: f64 = parts.iter().map(|part| part.ns).sum();
        for part in &mut parts {
            part.ns *= total as f64 / sum;
        }
        parts
    };
    (0..).zip(plan.share_ns()).map(share).collect()
}

/// Reading `tokens` and computing `rows` rows with them, whichever takes longer.
fn read_ns(config: &PlanConfig, rows: u32, tokens: u32) -> f64 {
    let CostModel {
        bytes_per_ns,
        flops_per_ns,
        ..
    } = config.cost;
    let elements = f64::from(tokens) * f64::from(config.head_dim);
    let memory = 2.0 * elements * f64::from(config.element_bytes) / bytes_per_ns;
    memory.max(4.0 * elements * f64::from(rows) / flops_per_ns)
}

/// A tree as it is, for tests.
#[cfg(test)]
pub(super) fn example(name: &str) -> LaidOut {
    let text = super::sources::read("workloads/trees.json").unwrap();
    let workloads = StepWorkload::parse(&text).unwrap();
    let mut row = super::trees::example().rows.remove(0);
    name.clone_into(&mut row.workload);
    let grouped = |&(_, grouping): &(Grouping, &str)| super::trees::Grouped {
        grouping: grouping.to_owned(),
        us: 30.0,
        bytes_issued: 1,
        shares: 16,
        max_rows: 128,
    };
    row.by_grouping = GROUPINGS.iter().map(grouped).collect();
    LaidOut::new(name, &workloads, &[row]).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_takes_as_long_as_its_planner_says_and_flatten_ends_first() {
        for name in [STAR, TREE] {
            let laid_out = example(name);
            let flatten = laid_out.schedules.last().unwrap();
            assert_eq!(flatten.grouping, "flatten");
            let mut config = PlanConfig::new(Grouping::Flatten, 4, 128, 16);
            config.max_rows = 128;
            let plan = Planner::new(config).unwrap().plan(&laid_out.view).unwrap();
            for (&ns, total) in plan.share_ns().iter().zip(flatten.totals()) {
                assert!((total - ns as f64).abs() < 1e-6 * total);
            }
            for other in &laid_out.schedules[..2] {
                assert!(other.end_ns() > flatten.end_ns(), "{}", other.grouping);
            }
        }
    }

    #[test]
    fn a_node_is_read_by_as_many_as_are_below_it() {
        let laid_out = example(TREE);
        for schedule in &laid_out.schedules {
            let parts = || schedule.shares.iter().flatten();
            for sharers in [1, 2, 4, 8, 16, 32, 64] {
                assert!(
                    parts().any(|part| part.what == What::Read(sharers)),
                    "{sharers}"
                );
            }
            assert!(parts().all(|part| part.ns > 0.0));
        }
    }
}
