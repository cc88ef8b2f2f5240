//! `deft-bench scaling`: time against the bound as queries, context or trees grow.

use std::path::PathBuf;

use anyhow::{Context, Result};
use deft::abi::PAGE_TOKENS;
use deft::cache::PagePool;
use deft::plan::Planner;
use deft::tree::{NodeKey, TokenForest};
use deft_workloads::LLAMA3_8B;
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::document::Document;
use crate::gpu::Repeats;
use crate::problem::{bytes_unique, flops, issued_io, of_forest};
use crate::progress::Progress;
use crate::report::floor_us;
use crate::{DeviceArgs, GroupingArg, say};

/// Times attention as queries, context or trees grow.
///
/// Queries go from 1 to 4096 on a prompt of 4,096 tokens, context 1k to 256k
/// under 32 queries, or 1 to 256 small trees at once. Heads are Llama-3-8B's, in bf16.
///
/// Every point is checked against f64 first; one that is wrong is not timed, and the program ends with
/// status 1. Times are those of one replayed CUDA graph, with an L2 that a 256 MB read has emptied.
///
/// Examples:
///   deft-bench scaling --json h100-scaling.json
///   deft-bench scaling --quick --device cpu --filter queries
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How queries and KV are grouped; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "per-query,flatten")]
    grouping: Vec<GroupingArg>,
    /// Vary only what contains this: `queries`, `context` or `trees`.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Stop at 64 queries, 16k of context and 4 trees.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results, row by row.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Timed replays a row.
    #[arg(long, default_value_t = 30)]
    iterations: usize,
    /// Replays before those.
    #[arg(long, default_value_t = 5)]
    warmup: usize,
}

/// One point with one grouping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) grouping: String,
    pub(crate) queries: u32,
    pub(crate) context: u32,
    pub(crate) trees: u32,
    pub(crate) median_us: f64,
    pub(crate) p20_us: f64,
    pub(crate) p80_us: f64,
    pub(crate) floor_us: f64,
    pub(crate) bytes_unique: u64,
    pub(crate) bytes_issued: u64,
    pub(crate) flops: u64,
    pub(crate) max_rel_l2: f64,
}

/// Few-shot trees of one size: a prompt and branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    /// What is varied.
    workload: &'static str,
    trees: u32,
    context: u32,
    branches: u32,
    branch_tokens: u32,
}

/// The points, each four times the one before; the quick ones only, or all.
fn points(quick: bool) -> Vec<Point> {
    let up_to = |most: u32, quick_most: u32| {
        let most = if quick { quick_most } else { most };
        std::iter::successors(Some(1), |n| Some(n * 4)).take_while(move |&n| n <= most)
    };
    let queries = up_to(4096, 64).map(|branches| Point {
        workload: "queries",
        trees: 1,
        context: 4096,
        branches,
        branch_tokens: 16,
    });
    let context = up_to(256, 16).map(|kilo| Point {
        workload: "context",
        trees: 1,
        context: kilo * 1024,
        branches: 32,
        branch_tokens: 128,
    });
    let trees = up_to(256, 4).map(|trees| Point {
        workload: "trees",
        trees,
        context: 512,
        branches: 4,
        branch_tokens: 64,
    });
    queries.chain(context).chain(trees).collect()
}

impl Point {
    fn build(&self) -> Result<(TokenForest, Vec<NodeKey>)> {
        let pages = |tokens: u32| tokens.div_ceil(PAGE_TOKENS);
        let a_tree = pages(self.context) + self.branches * pages(self.branch_tokens);
        let mut forest = TokenForest::new(PagePool::new(self.trees * a_tree)?);
        let mut queries = Vec::new();
        for _ in 0..self.trees {
            let prompt = forest.insert_root(self.context)?;
            let branches = forest.fork(prompt, self.branches as usize)?;
            forest.extend(&branches, self.branch_tokens)?;
            queries.extend(branches);
        }
        Ok((forest, queries))
    }

    /// Queries that are compared with f64: fewer where each sees more.
    fn checked(&self) -> u32 {
        (65_536 / self.context).clamp(2, 16)
    }

    fn name(&self) -> String {
        let Self { trees, context, branches, .. } = self;
        format!("{trees} trees, context {context}, {branches} queries each")
    }
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let mut points = points(args.quick);
    if let Some(name) = &args.filter {
        points.retain(|point| point.workload.contains(name));
        anyhow::ensure!(
            !points.is_empty(),
            "nothing that is varied contains `{name}`: there are queries, context and trees"
        );
    }
    let device = args.device.open()?;
    say(&device.describe());
    let repeats = Repeats { warmup: args.warmup, measured: args.iterations.max(1) };
    let mut document = Document::new("scaling", &device, device.time_nothing(repeats)?);
    let progress = Progress::new(points.len() * args.grouping.len());
    progress.say(&format!(
        "{:8} {:10} {:>7} {:>7} {:>6} {:>9} {:>8}-{:<8} {:>8} {:>6} {:>8}",
        "varied",
        "grouping",
        "queries",
        "context",
        "trees",
        "us",
        "p20",
        "p80",
        "floor",
        "x floor",
        "rel L2"
    ));
    let mut wrong = 0;
    for point in &points {
        wrong += run_point(args, point, &device, repeats, &progress, &mut document)
            .with_context(|| point.name())?;
        document.write(args.json.as_deref())?;
    }
    Ok(wrong)
}

fn run_point(
    args: &Args,
    point: &Point,
    device: &Device,
    repeats: Repeats,
    progress: &Progress,
    document: &mut Document<Row>,
) -> Result<usize> {
    progress.doing(&point.name());
    let (forest, queries) = point.build()?;
    let problem = of_forest::<bf16>(LLAMA3_8B, &forest, &queries, point.checked())?;
    let view = &problem.view;
    let mut runner = device.runner(&problem)?;
    let mut wrong = 0;
    for &grouping in &args.grouping {
        let what = format!("{}, {}", point.name(), grouping.name());
        let config = runner.plan_config(grouping.into());
        let plan = Planner::new(config)?.plan(view)?;
        runner.load(&plan)?;
        let verdict = problem.judge(&runner.attend(&plan, &what)?);
        progress.step();
        if !verdict.passes() {
            progress.say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
            continue;
        }
        let time = runner.time(&plan, repeats, &what)?;
        let (bytes_unique, flops) = (bytes_unique(&problem), flops(&problem));
        let row = Row {
            workload: point.workload.to_owned(),
            grouping: grouping.name().to_owned(),
            queries: view.queries,
            context: point.context,
            trees: point.trees,
            median_us: time.median,
            p20_us: time.p20,
            p80_us: time.p80,
            floor_us: floor_us(bytes_unique, flops),
            bytes_unique,
            bytes_issued: issued_io(&problem, &plan).read(),
            flops,
            max_rel_l2: verdict.max_rel_l2,
        };
        progress.say(&row.line());
        document.rows.push(row);
    }
    Ok(wrong)
}

impl Row {
    fn line(&self) -> String {
        format!(
            "{:8} {:10} {:7} {:7} {:6} {:9.2} {:8.2}-{:<8.2} {:8.2} {:7.2} {:8.1e}",
            self.workload,
            self.grouping,
            self.queries,
            self.context,
            self.trees,
            self.median_us,
            self.p20_us,
            self.p80_us,
            self.floor_us,
            self.median_us / self.floor_us,
            self.max_rel_l2
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_grows_from_one_to_its_most() {
        let all = points(false);
        let of = |name| all.iter().filter(move |point| point.workload == name);
        let queries: Vec<u32> = of("queries").map(|point| point.branches).collect();
        assert_eq!(queries, [1, 4, 16, 64, 256, 1024, 4096]);
        assert_eq!(of("context").next_back().unwrap().context, 256 * 1024);
        assert_eq!(of("trees").next_back().unwrap().trees, 256);
        assert!(points(true).iter().all(|point| all.contains(point)));
    }

    #[test]
    fn a_point_on_the_cpu_is_right_and_its_bytes_are_those_of_its_tokens() {
        let point =
            Point { workload: "trees", trees: 2, context: 100, branches: 3, branch_tokens: 10 };
        let words =
            ["deft-bench", "scaling", "--device", "cpu", "--iterations", "1", "--warmup", "0"];
        let crate::Command::Scaling(args) = crate::parse(&words).command else {
            panic!("another command");
        };
        let mut document = Document::new("scaling", &Device::Cpu, None);
        let repeats = Repeats { warmup: 0, measured: 1 };
        let progress = Progress::new(2);
        let wrong = run_point(&args, &point, &Device::Cpu, repeats, &progress, &mut document);
        assert_eq!(wrong.unwrap(), 0);
        let [per_query, flatten] = &document.rows[..] else {
            panic!("{} rows", document.rows.len());
        };
        assert_eq!((per_query.queries, per_query.trees), (6, 2));
        assert_eq!(flatten.bytes_unique, 2 * 130 * 4096);
        assert_eq!(flatten.flops, 6 * 110 * 4 * 4096);
        assert!(per_query.bytes_issued > flatten.bytes_issued);
    }
}
