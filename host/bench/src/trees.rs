//! `deft-bench trees`: single decode steps of whole trees, checked and timed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use deft::attention::AttentionParams;
use deft::cache::DType;
use deft::cuda::PlanCapacity;
use deft::plan::{Grouping, Plan, PlanConfig, Planner, shares_for};
use deft::tree::TreeView;
use deft::workload::{StepTree, StepWorkload};

use crate::compare::{Oracle, sample};
use crate::gpu::{Gpu, Repeats};
use crate::peers::Peers;
use crate::random::Random;
use crate::report::{Report, Row, floor_us, header};
use crate::session::Session;
use crate::tensors::{Heads, HostPool, random_queries};
use crate::{DeviceArgs, GroupingArg, command_line, say};

/// Checks each workload's attention against f64, then times it.
///
/// Times are those of one replayed CUDA graph, with an L2 that a 256 MB read has emptied. A row whose
/// results are wrong is not timed, and the program ends with status 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workloads to run instead of those that come with the program; see workloads/README.md.
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
    /// How queries and KV are grouped; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "flatten")]
    grouping: Vec<GroupingArg>,
    /// Run workloads whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    iterations: usize,
    /// Replays before those.
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// Queries that are compared with f64, all heads each.
    #[arg(long, default_value_t = 16)]
    checked: u32,
    /// Shares a KV head; left out, as many as fill the device.
    #[arg(long)]
    shares: Option<u32>,
    /// Most rows of a work item.
    #[arg(long)]
    max_rows: Option<u32>,
    /// Pages of a node-chunk item.
    #[arg(long)]
    chunk_pages: Option<u32>,
}

const WORKLOADS: &str = include_str!("../../../workloads/trees.json");

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let text = match &args.workloads {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => WORKLOADS.to_owned(),
    };
    let mut workloads = StepWorkload::parse(&text)?;
    if let Some(name) = &args.filter {
        workloads.retain(|workload| workload.name.contains(name));
        ensure!(
            !workloads.is_empty(),
            "no workload's name contains `{name}`"
        );
    }
    let peers = Peers::embedded()?;
    let gpu = args.device.open()?;
    say(&gpu.device.describe());
    let repeats = Repeats {
        warmup: args.warmup,
        measured: args.iterations.max(1),
    };
    let empty = gpu.time_empty_graph(repeats)?;
    let mut report = Report {
        device: gpu.device.describe(),
        commit: option_env!("DEFT_COMMIT").unwrap_or_default().to_owned(),
        command: command_line(),
        empty_graph_us: empty.median,
        kernels: Vec::new(),
        rows: Vec::new(),
    };
    say(&header());
    let mut wrong = 0;
    for workload in &workloads {
        let outcome = run_workload(args, workload, &gpu, repeats, &peers, &mut report);
        // Rows so far are worth keeping, whatever happens next.
        if let Some(path) = &args.json {
            report.write(path)?;
        }
        wrong += outcome.with_context(|| format!("workload {}", workload.name))?;
    }
    say(&report.summary(&peers));
    Ok(wrong)
}

fn run_workload(
    args: &Args,
    workload: &StepWorkload,
    gpu: &Gpu,
    repeats: Repeats,
    peers: &Peers,
    report: &mut Report,
) -> Result<usize> {
    let problem = Problem::new(workload)?;
    let view = &problem.view;
    let queries = sample(view.queries, args.checked);
    let oracle = Oracle::new(&problem.pool, view, &problem.q, &queries);
    let slots = problem.lengths.len() as u32;
    let mut session = Session::new(gpu, &problem.pool, &problem.q, view.queries, slots)?;
    session
        .cache
        .set_counters(&problem.lengths, &problem.tail_pages, &gpu.stream)?;
    for kernel in session.cache.kernels() {
        let line = format!("{} {:?}", kernel.name(), kernel.resources()?);
        if !report.kernels.contains(&line) {
            say(&format!("  {line}"));
            report.kernels.push(line);
        }
    }
    let mut wrong = 0;
    for &grouping in &args.grouping {
        let what = format!("{} {}", workload.name, grouping.name());
        let mut planner = Planner::new(args.plan_config(grouping, &problem, gpu))?;
        let begin = Instant::now();
        let plan = planner.plan(view)?;
        let plan_us = begin.elapsed().as_secs_f64() * 1e6;
        let group = problem.heads.group;
        let mut device_plan = session.cache.reserve(PlanCapacity::of(&plan), group)?;
        device_plan.update(&plan, &gpu.stream)?;
        let verdict = oracle.judge(&session.attend(&device_plan, view.queries, &what)?);
        if !verdict.passes() {
            say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
            continue;
        }
        let mut graph = gpu.capture(|stream| session.enqueue(&device_plan, stream))?;
        // SAFETY: session and plan outlive the graph.
        let time = unsafe { gpu.time(&mut graph, repeats, &what) }?;
        let mut row = problem.row(workload, grouping, &plan, plan_us);
        row.max_rel_l2 = verdict.max_rel_l2;
        row.max_lse_error = verdict.max_lse_error;
        row.best_peer_us = peers.best_us(&workload.name);
        row.set_time(time);
        say(&row.line());
        report.rows.push(row);
    }
    Ok(wrong)
}

impl Args {
    fn plan_config(&self, grouping: GroupingArg, problem: &Problem, gpu: &Gpu) -> PlanConfig {
        let heads = &problem.heads;
        let pages = problem.view.pages.len() as u32;
        let shares = self
            .shares
            .unwrap_or_else(|| shares_for(gpu.device.multiprocessors(), heads.kv_heads, pages));
        let mut config = PlanConfig::new(
            Grouping::from(grouping),
            heads.group,
            heads.head_dim,
            shares,
        );
        if let Some(rows) = self.max_rows {
            config.max_rows = rows;
        }
        if let Some(pages) = self.chunk_pages {
            config.chunk_pages = pages;
        }
        config
    }
}

/// A workload with K, V and queries.
struct Problem {
    heads: Heads,
    view: TreeView,
    pool: HostPool,
    q: Vec<u16>,
    lengths: Vec<u32>,
    tail_pages: Vec<u32>,
    unique_tokens: u64,
    path_tokens: u64,
}

impl Problem {
    fn new(workload: &StepWorkload) -> Result<Self> {
        let shape = workload.heads;
        ensure!(
            workload.dtype != DType::F32,
            "the GPU kernels store bf16 and f16, not f32"
        );
        let heads = Heads {
            dtype: workload.dtype,
            kv_heads: shape.kv_heads,
            group: shape.group_size(),
            head_dim: shape.head_dim,
            params: AttentionParams::new(shape.head_dim),
        };
        let built = workload.build(0)?;
        let pages = built.forest.pool().capacity();
        let mut view = built.forest.view(&built.queries)?;
        // The forest hands pages out in order; a cache in use has them anywhere.
        let mut order: Vec<u32> = (0..pages).collect();
        Random::new(1).shuffle(&mut order);
        for page in &mut view.pages {
            *page = order[*page as usize];
        }
        let tail_pages = built.forest.tail_pages().iter();
        Ok(Self {
            pool: HostPool::random(heads, pages, &view, Random::new(2)),
            q: random_queries(&heads, view.queries, Random::new(3)),
            lengths: built.forest.lengths().to_vec(),
            tail_pages: tail_pages
                .map(|&page| order.get(page as usize).copied().unwrap_or(page))
                .collect(),
            unique_tokens: workload
                .trees()
                .iter()
                .flat_map(StepTree::tokens)
                .map(|&t| u64::from(t))
                .sum(),
            path_tokens: workload.trees().iter().map(path_tokens).sum(),
            heads,
            view,
        })
    }

    fn row(
        &self,
        workload: &StepWorkload,
        grouping: GroupingArg,
        plan: &Plan,
        plan_us: f64,
    ) -> Row {
        let heads = &self.heads;
        let token_bytes = u64::from(heads.kv_heads * heads.head_dim) * 2 * 2;
        let bytes_unique = self.unique_tokens * token_bytes;
        let flops = self.path_tokens * u64::from(heads.q_heads() * heads.head_dim) * 4;
        let io = plan.issued_io(
            workload.heads,
            heads.dtype.bytes() as u32,
            &self.lengths,
            true,
        );
        Row {
            workload: workload.name.clone(),
            grouping: grouping.name().to_owned(),
            median_us: 0.0,
            p20_us: 0.0,
            p80_us: 0.0,
            bytes_unique,
            bytes_issued: io.read(),
            bytes_kv: io.kv,
            bytes_written: io.written(),
            max_rel_l2: 0.0,
            max_lse_error: 0.0,
            floor_us: floor_us(bytes_unique, flops),
            best_peer_us: None,
            shares: plan.shares(),
            items: (0..plan.shares())
                .map(|share| plan.share(share).items().len())
                .sum(),
            partial_slots: plan.partial_slots(),
            plan_us,
        }
    }
}

/// Tokens that all queries of a tree see together.
fn path_tokens(tree: &StepTree) -> u64 {
    let mut path = vec![0u64; tree.tokens().len()];
    for (node, (parent, &tokens)) in tree.parents().iter().zip(tree.tokens()).enumerate() {
        let above = parent.map_or(0, |parent| path[parent as usize]);
        path[node] = above + u64::from(tokens);
    }
    tree.queries().iter().map(|&node| path[node as usize]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str) -> (StepWorkload, Problem) {
        let workloads = StepWorkload::parse(WORKLOADS).unwrap();
        let workload = workloads.into_iter().find(|w| w.name == name).unwrap();
        let problem = Problem::new(&workload).unwrap();
        (workload, problem)
    }

    #[test]
    fn the_floors_are_those_the_peers_were_held_against() {
        let (workload, problem) = problem("qwen05_tot");
        let mut config = PlanConfig::new(Grouping::Flatten, 7, 64, 66);
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let row = problem.row(&workload, GroupingArg::Flatten, &plan, 0.0);
        assert!((row.floor_us - 1.6).abs() < 0.05, "{}", row.floor_us);
        assert!(row.bytes_kv >= row.bytes_unique);
        config.grouping = Grouping::PerQuery;
        let per_query = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let again = problem.row(&workload, GroupingArg::PerQuery, &per_query, 0.0);
        assert!(again.bytes_kv > 2 * row.bytes_kv, "no sharing reads more");
    }

    #[test]
    fn pages_are_out_of_order_but_each_is_there_once() {
        let (_, problem) = problem("qwen05_tot");
        let mut pages = problem.view.pages.clone();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), problem.view.pages.len());
    }
}
