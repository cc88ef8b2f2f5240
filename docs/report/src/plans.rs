//! A tree of `workloads/trees.json` with its plans: who shares what, and who works when.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deft::plan::{CostModel, Grouping, Plan, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_workloads::StepWorkload;
use kernels_gpu::abi::NONE;

use crate::data::{Table, number, title};
use crate::figure::{Figure, MARGIN, Scale, WIDTH, shade, shades};
use crate::trees::Comparison;

/// A long prompt that all share, and short branches: the plans show what balance is.
pub(crate) const STAR: &str = "fewshot_4k_w20";
/// A tree with nodes that from 1 to 64 queries share.
pub(crate) const TREE: &str = "binary_depth6";
/// The groupings that are laid over the SMs.
const GROUPINGS: [(Grouping, &str); 3] = [
    (Grouping::Node, "node"),
    (Grouping::NodeChunk, "node-chunk"),
    (Grouping::Flatten, "flatten"),
];
/// Height of an SM's line.
const ROW: f64 = 9.0;

/// A tree and its plans.
pub(crate) struct LaidOut {
    workload: StepWorkload,
    view: TreeView,
    schedules: Vec<Schedule>,
}

/// A plan over time.
struct Schedule {
    grouping: &'static str,
    /// What each SM of a KV head does, in order: the class of its colour, and nanoseconds.
    shares: Vec<Vec<(String, f64)>>,
    /// Microseconds that were measured, both kernels.
    measured_us: f64,
}

impl LaidOut {
    /// The tree `name` with the plans that its row was measured with.
    pub(crate) fn new(name: &str, comparison: &Comparison) -> Result<Self> {
        let mut workloads = comparison.workloads.iter();
        let workload = workloads.find(|workload| workload.name == name);
        let workload = workload.with_context(|| format!("no {name} in workloads/trees.json"))?;
        let built = workload.build(0)?;
        let view = built.forest.view(&built.queries)?;
        let schedule = |&(grouping, word): &(Grouping, &'static str)| {
            let row = comparison.run.row(name, word)?;
            let heads = workload.heads;
            let shares = row.get("shares")? as u32;
            let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, shares);
            config.max_rows = row.get("max_rows")? as u32;
            let plan = Planner::new(config)?.plan(&view)?;
            Ok(Schedule {
                grouping: word,
                shares: parts(&plan, &config, &view, built.forest.lengths()),
                measured_us: row.get("median_us")?,
            })
        };
        let schedules = GROUPINGS.iter().map(schedule).collect::<Result<_>>()?;
        Ok(Self {
            workload: workload.clone(),
            view,
            schedules,
        })
    }

    /// For each grouping a line an SM.
    pub(crate) fn schedule(&self) -> Figure {
        let ends = self.schedules.iter().map(|schedule| {
            let end = schedule.end_us();
            format!("{} ends after {end:.1} us", title(schedule.grouping))
        });
        let ends = ends.collect::<Vec<String>>().join(", ");
        let name = &self.workload.name;
        let description = format!(
            "For each grouping a line an SM, over time by the planner's cost model. {ends}."
        );
        let heading = format!("{name}: the plan laid over the SMs");
        let mut figure = Figure::new(&format!("schedule-{name}"), &heading, &description);
        self.legend(&mut figure, "reads a node shared by so many queries:");
        figure.top += 18.0;
        figure.legend(
            MARGIN,
            [
                ("fixed", "fixed cost of a work item"),
                ("partial", "partial results, written and read"),
                ("dash", "perfect balance: the mean of the SMs"),
            ],
        );
        figure.top += 18.0;
        let range = [MARGIN + 40.0, WIDTH - MARGIN - 8.0];
        let longest = self
            .schedules
            .iter()
            .map(Schedule::end_us)
            .fold(1.0, f64::max);
        let scale = Scale::linear(longest * 1.02, range);
        for schedule in &self.schedules {
            schedule.draw(&mut figure, &scale);
        }
        let middle = (range[0] + range[1]) / 2.0;
        figure.text(
            "small middle",
            middle,
            figure.top + 20.0,
            "microseconds by the cost model",
        );
        let (heads, shares) = (
            self.workload.heads.kv_heads,
            self.schedules[0].shares.len() as u32,
        );
        let note = format!(
            "{name}, {shares} SMs of one KV head; the other {} heads look the same ({} of an H100's 132 SMs).",
            heads - 1,
            heads * shares,
        );
        figure.text("small", MARGIN, figure.top + 42.0, &note);
        figure.top += 57.0;
        figure
    }

    /// A box a node, as wide as its tokens, as high as the queries that share it: area is bytes.
    pub(crate) fn tree(&self) -> Figure {
        let view = &self.view;
        let tokens: u32 = view.runs.iter().map(|run| run.tokens).sum();
        let seen: u32 = view
            .runs
            .iter()
            .map(|run| run.tokens * run.queries.len() as u32)
            .sum();
        let [tokens, seen] = [tokens, seen].map(|count| number(count.into()));
        let mut ends: Vec<u32> = Vec::with_capacity(view.runs.len());
        for run in &view.runs {
            let from = run.parent.map_or(0, |parent| ends[parent as usize]);
            ends.push(from + run.tokens);
        }
        let description = format!(
            "Each box is a node of {}: as wide as its tokens, as high as the number of queries that share it. All boxes \
             together are the {seen} tokens that PerQuery reads; the tree holds {tokens}.",
            self.workload.name,
        );
        let heading = format!("A tree of {} nodes: who shares what", view.runs.len());
        let mut figure = Figure::new("tree", &heading, &description);
        self.legend(&mut figure, "queries that share a node:");
        figure.text("small", MARGIN, 68.0, "query");
        let (top, bottom, xs) = (78.0, 438.0, [MARGIN + 30.0, WIDTH - MARGIN]);
        let longest = ends.iter().copied().max().unwrap_or(1);
        let x = Scale::linear(longest.into(), xs);
        let y = Scale::linear(view.queries.into(), [top, bottom]);
        figure.draw_x(&x, [top, bottom]);
        figure.draw_y(&y, xs);
        for (run, &end) in view.runs.iter().zip(&ends) {
            let [left, right] = [end - run.tokens, end].map(|token| x.at(token.into()));
            let [above, below] =
                [run.queries.start, run.queries.end].map(|query| y.at(query.into()));
            let size = [right - left, below - above].map(|side| (side - 0.8).max(0.8));
            figure.rect(
                &shade(run.queries.len() as u32),
                [left + 0.4, above + 0.4],
                size,
            );
        }
        let middle = (xs[0] + xs[1]) / 2.0;
        figure.text(
            "small middle",
            middle,
            bottom + 32.0,
            "position in the context (tokens)",
        );
        let note = format!(
            "The area is what PerQuery reads: {seen} tokens a KV head. Read once, the tree is {tokens}."
        );
        figure.text("small", MARGIN, bottom + 54.0, &note);
        figure.top = bottom + 69.0;
        figure
    }

    fn legend(&self, figure: &mut Figure, words: &str) {
        let x = figure.legend(MARGIN, [("", words)]);
        let shades = shades(self.view.queries);
        figure.legend(x, shades.iter().map(|(class, range)| (&**class, &**range)));
    }

    /// The plans in numbers.
    pub(crate) fn rows(&self, table: &mut Table) {
        for schedule in &self.schedules {
            let (end, mean) = (schedule.end_us(), schedule.mean_us());
            let items = schedule
                .shares
                .iter()
                .flatten()
                .filter(|(class, _)| class == "fixed");
            table.row([
                self.workload.name.clone(),
                title(schedule.grouping).to_owned(),
                format!("{end:.1}"),
                format!("{mean:.1}"),
                format!("{:.2}x", end / mean),
                items.count().to_string(),
                format!("{:.1}", schedule.measured_us),
            ]);
        }
    }
}

impl Schedule {
    fn totals(&self) -> impl Iterator<Item = f64> {
        self.shares
            .iter()
            .map(|parts| parts.iter().map(|(_, ns)| ns * 1e-3).sum())
    }

    /// When the last SM is through.
    fn end_us(&self) -> f64 {
        self.totals().fold(0.0, f64::max)
    }

    /// What every SM would take if all took the same.
    fn mean_us(&self) -> f64 {
        self.totals().sum::<f64>() / self.shares.len().max(1) as f64
    }

    fn draw(&self, figure: &mut Figure, scale: &Scale) {
        let (end, mean) = (self.end_us(), self.mean_us());
        figure.top += 8.0;
        figure.text("strong", MARGIN, figure.top + 8.0, title(self.grouping));
        let words = format!(
            "last SM ends at {:.2}x the mean; {:.1} us measured",
            end / mean,
            self.measured_us
        );
        figure.text("small end", WIDTH - MARGIN, figure.top + 8.0, &words);
        let top = figure.top + 16.0;
        let bottom = top + ROW * self.shares.len() as f64;
        figure.draw_x(scale, [top, bottom]);
        for i in (0..self.shares.len()).step_by(5) {
            let y = top + ROW * i as f64 + 8.0;
            figure.text(
                "small end",
                scale.at(0.0) - 6.0,
                y,
                &format!("SM {}", i + 1),
            );
        }
        // One path a colour keeps the page small.
        let mut paths: BTreeMap<&str, String> = BTreeMap::new();
        for (i, parts) in self.shares.iter().enumerate() {
            let (y, mut at) = (top + ROW * i as f64 + 0.5, 0.0);
            for (class, ns) in parts {
                let [left, right] = [at, at + ns].map(|ns| scale.at(ns * 1e-3));
                let bar = format!(
                    "M{left:.1} {y:.1}h{:.1}v8H{left:.1}z",
                    (right - left).max(0.3)
                );
                *paths.entry(class).or_default() += &bar;
                at += ns;
            }
        }
        for (class, path) in &paths {
            figure.path(class, path);
        }
        figure.line(
            "dash",
            [scale.at(mean), top - 3.0],
            [scale.at(mean), bottom + 3.0],
        );
        figure.top = bottom + 20.0;
    }
}

/// What each share does. How long a share takes is the planner's; within it, parts are as long as the constants of
/// the cost model make them, next to each other.
fn parts(
    plan: &Plan,
    config: &PlanConfig,
    view: &TreeView,
    lengths: &[u32],
) -> Vec<Vec<(String, f64)>> {
    let pages = view.runs.iter().flat_map(|run| {
        let pages = &view.pages[run.pages.start as usize..run.pages.end as usize];
        pages.iter().map(|&page| (page, run.queries.len() as u32))
    });
    let sharers: BTreeMap<u32, u32> = pages.collect();
    let share = |(index, &total): (u32, &u64)| {
        let mut parts = Vec::new();
        for item in plan.share(index).items() {
            let rows = item.record.query_count * config.group_size;
            parts.push(("fixed".to_owned(), config.cost.item_ns));
            for segment in item.segments {
                let length = lengths.get(segment.length_slot as usize).copied();
                let page = item.pages(segment).first();
                let by = page
                    .and_then(|page| sharers.get(page))
                    .copied()
                    .unwrap_or(1);
                let tokens = segment.tokens_at(length.unwrap_or(0));
                parts.push((shade(by), read_ns(config, rows, tokens)));
            }
            if item.record.partial_slot != NONE {
                let bytes = 2.0 * 4.0 * f64::from(rows) * f64::from(config.head_dim + 1);
                parts.push((
                    "partial".to_owned(),
                    bytes / config.cost.partial_bytes_per_ns,
                ));
            }
        }
        let sum: f64 = parts.iter().map(|(_, ns)| ns).sum();
        parts
            .iter_mut()
            .for_each(|(_, ns)| *ns *= total as f64 / sum);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flatten_ends_first_and_every_node_is_read_in_the_colour_of_its_sharers() {
        let comparison = Comparison::read().unwrap();
        for name in [STAR, TREE] {
            let laid_out = LaidOut::new(name, &comparison).unwrap();
            let (flatten, others) = laid_out.schedules.split_last().unwrap();
            assert_eq!(flatten.grouping, "flatten");
            assert!(others.iter().all(|other| other.end_us() > flatten.end_us()));
        }
        let tree = LaidOut::new(TREE, &comparison).unwrap();
        let svg = tree.tree().inline();
        // 64 leaves and one root; one of each colour is the legend's.
        assert_eq!(svg.matches("class=\"q0\"").count(), 64 + 1);
        assert_eq!(svg.matches("class=\"q6\"").count(), 1 + 1);
        let schedule = tree.schedule().inline();
        for class in ["q0", "q6", "fixed"] {
            let path = format!("<path class=\"{class}\"");
            assert_eq!(schedule.matches(&path).count(), 3, "{class}");
        }
    }
}
